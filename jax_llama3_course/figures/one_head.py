"""Pictures of one attention head: its way from rows to output, its scale, its pattern."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..drawings import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas
from ..pictures import heat_map


def head_map() -> Figure:
    """The way from x to z through one head, with the shape of every array."""
    figure, axes = canvas(22.5, 7.8, inches=0.45)
    box(axes, 0.2, 3.3, 1.8, 1.4, "x\n[T D]", GREY)
    for name, low, colour in [("q", 6, BLUE), ("k", 3.3, BLUE), ("v", 0.6, ORANGE)]:
        middle = low + 0.7
        corner = [] if name == "k" else [(3, 4), (3, middle)]
        arrow(axes, (2, 4), *corner, (4, middle))
        box(axes, 4, low, 2.2, 1.4, f"$W_{name}$\n[H D]", GREY)
        arrow(axes, (6.2, middle), (7.4, middle))
        box(axes, 7.4, low, 2, 1.4, f"{name}\n[T H]", colour)
    box(axes, 11, 4.5, 3.2, 1.8, "scores\n$q\\,k^T / \\sqrt{H}$\n[T T]", BLUE)
    arrow(axes, (9.4, 6.7), (10.2, 6.7), (10.2, 5.8), (11, 5.8))
    arrow(axes, (9.4, 4), (10.2, 4), (10.2, 5), (11, 5))
    arrow(axes, (14.2, 5.4), (15.1, 5.4))
    box(axes, 15.1, 4.5, 2.5, 1.8, "mask\nfuture: $-\\infty$\n[T T]", GREY)
    arrow(axes, (17.6, 5.4), (18.5, 5.4))
    box(axes, 18.5, 4.5, 2.6, 1.8, "softmax\nby row\n[T T]", BLUE)
    box(axes, 16.2, 0.6, 3, 1.4, "pattern $\\cdot$ v", ORANGE)
    arrow(axes, (19.8, 4.5), (19.8, 3.2), (17.7, 3.2), (17.7, 2))
    arrow(axes, (9.4, 1.3), (16.2, 1.3))
    arrow(axes, (19.2, 1.3), (20.2, 1.3))
    box(axes, 20.2, 0.6, 2, 1.4, "z\n[T H]", GREEN)
    return figure


def scale(
    sizes: Sequence[int],
    spread: Sequence[float],
    effective: Mapping[str, Sequence[float]],
    real_size: int,
    real: Mapping[str, float],
    n_keys: int,
) -> Figure:
    """Over the size of a head: the spread of q·k, and how many keys the softmax uses.

    `effective` has a row of numbers for every divisor, `real` one number of a real head whose size
    is `real_size`; all are out of `n_keys` keys.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(2, 3))
    left.loglog(sizes, spread, "o", base=2, label="measured")
    left.loglog(sizes, np.sqrt(sizes), "k:", base=2, label="sqrt(H)")
    left.set_yticks(np.sqrt(sizes), [f"{np.sqrt(size):.0f}" for size in sizes])
    left.set_title("spread of q · k")
    left.legend()

    for name, values in effective.items():
        (line,) = right.semilogx(sizes, values, "o-", base=2)
        colour = line.get_color()
        right.plot(real_size, real[name], "D", color=colour, markersize=9, markeredgecolor="black")
        words = {"1": "not divided"}.get(name, f"divided by {name}")
        place = (sizes[-1] * 1.15, values[-1])
        right.annotate(words, place, color=colour, va="center")
    right.plot([], [], "o-", color="grey", label="random vectors")
    right.plot([], [], "D", color="grey", markeredgecolor="black", label="a head of this model")
    for height, words, place in [(n_keys, f"all {n_keys} keys", 1.5), (1, "one key", -6.5)]:
        right.plot(
            [sizes[0], sizes[-1]], [height, height], color="grey", linestyle=":", linewidth=1
        )
        right.text(sizes[0], height + place, words, fontsize=8, color="#555555")
    right.set_xlim(sizes[0] * 0.7, sizes[-1] * 6)
    right.set_ylim(-8, n_keys * 1.1)
    right.set_title("effective number of keys")
    right.legend(fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.67))
    for axes in (left, right):
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("H, the size of a head")
    return figure


def three_maps(scores: Any, masked: Any, pattern: Any, words: Sequence[str]) -> Figure:
    """The scores, the scores without the future, and the weights: queries down, keys across."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.4))
    limits = {"vmin": float(np.min(scores)), "vmax": float(np.max(scores))}
    _map(panels[0], scores, words, "1. scores", **limits)
    _map(panels[1], masked, words, "2. the future is masked", **limits)
    _map(panels[2], pattern, words, "3. pattern: each row adds up to 1", vmin=0, vmax=1)
    panels[0].set_ylabel("query: who asks")
    return figure


def _map(axes: Axes, matrix: Any, words: Sequence[str], title: str, **limits: float) -> None:
    heat_map(axes, matrix, words, words, numbers=".2f", cmap="Blues", **limits)
    axes.set_facecolor("#dddddd")
    for row, column in np.argwhere(~np.isfinite(np.asarray(matrix))):
        axes.text(column, row, r"$-\infty$", ha="center", va="center")
    axes.set_xlabel("key: who is asked")
    axes.set_title(title)
