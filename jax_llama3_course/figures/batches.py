"""The pictures of lesson 13: padding on either side, speed over rows, rows shared out to devices."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ..drawings import BLUE, GREEN, GREY, ORANGE, box, canvas

_INK = "#333333"


def two_sides(lengths: Sequence[int], width: int) -> Figure:
    """The rectangle of a ragged batch twice: padded on the right, padded on the left."""
    count = len(lengths)
    figure, axes = canvas(2 * width + 3, count + 1.4, inches=0.36)
    for shift, title in ((0, "right padding"), (width + 2, "left padding")):
        axes.text(shift + width / 2 + 0.5, count + 0.8, title, ha="center", fontsize=10)
        for row, length in enumerate(lengths):
            first = width - length if title.startswith("left") else 0
            for column in range(width):
                colour = BLUE if first <= column < first + length else GREY
                box(axes, shift + column + 0.5, count - row - 0.6, 0.9, 0.9, "", colour)
    return figure


def speeds(tokens_per_second: Mapping[int, float], shaded: Sequence[int] = ()) -> Figure:
    """Tokens a second over the rows of a batch, and what equal steps would give; some rows shaded."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    rows = list(tokens_per_second)
    if shaded:
        axes.axvspan(
            min(shaded) - 0.5, max(shaded) + 0.5, color=GREY, label="rows that XLA multiplies"
        )
    axes.plot(rows, list(tokens_per_second.values()), "o-", color=_INK, label="measured")
    alone = tokens_per_second[rows[0]] / rows[0]
    axes.plot(
        rows,
        [alone * count for count in rows],
        ":",
        color=_INK,
        label="if a step always took as long as with one row",
    )
    axes.set_xticks(rows)
    axes.set_xlabel("rows")
    axes.set_ylabel("tokens a second")
    axes.set_ylim(0, 1.2 * max(tokens_per_second.values()))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def mesh(rows: Sequence[str], axis: str = "data") -> Figure:
    """Devices in a line along a mesh's axis, each with a copy of the weights and a row of its own."""
    figure, axes = canvas(6.2 * len(rows) + 0.4, 5.4, inches=0.37)
    end = 6.2 * len(rows)
    axes.annotate("", xy=(end, 0.4), xytext=(0.4, 0.4), arrowprops={"arrowstyle": "->"})
    axes.text(end / 2 + 0.2, 0.55, f"mesh axis '{axis}'", ha="center", va="bottom", fontsize=9)
    for device, text in enumerate(rows):
        left = 6.2 * device + 0.4
        box(axes, left, 1.5, 5.8, 3.7, "", GREEN)
        axes.text(left + 2.9, 4.75, f"device {device}", ha="center", va="center", fontsize=9)
        box(axes, left + 0.4, 3.1, 5, 1, "all weights", ORANGE)
        box(axes, left + 0.4, 1.8, 5, 1, text, BLUE)
    return figure
