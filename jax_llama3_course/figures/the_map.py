"""The pictures of lesson 00: from text to rows of numbers, and the map of the network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..drawings import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas

_INK, _STREAM = "#333333", "#6fa8dc"
_STREAM_X, _PART_X, _PART_WIDTH = 3.0, 10.6, 5.2


def text_to_rows(prompt: str, pieces: Sequence[str], ids: Sequence[int], rows: Any) -> Figure:
    """A prompt, its tokens, their ids, and the first numbers of each id's row as a coloured strip."""
    rows = np.asarray(rows, np.float32)
    count, shown = rows.shape[0], 40
    middle, top = 1.3 * count / 2, 1.3 * count
    figure, axes = canvas(24, top + 1.2, inches=0.36)
    box(axes, 0.1, middle - 0.5, 6.2, 1, prompt, GREY)
    for x, text in ((9.4, "tokens"), (13.9, "ids"), (19.6, f"rows of {rows.shape[1]} numbers")):
        axes.text(x, top + 0.6, text, ha="center", va="center", fontsize=9, color=_INK)
    limit = float(np.quantile(np.abs(rows), 0.99))
    for place, (piece, token, row) in enumerate(zip(pieces, ids, rows, strict=True)):
        y = top - 1.3 * (place + 0.5)
        arrow(axes, (6.3, middle), (7.6, y))
        box(axes, 7.6, y - 0.42, 3.6, 0.84, repr(piece), BLUE)
        arrow(axes, (11.2, y), (12.6, y))
        box(axes, 12.6, y - 0.42, 2.6, 0.84, str(token), ORANGE)
        arrow(axes, (15.2, y), (16.4, y))
        strip = (16.4, 22.8, y - 0.42, y + 0.42)
        colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        axes.imshow(row[None, :shown], extent=strip, aspect="equal", **colours)
        axes.text(23.0, y, "…", va="center", fontsize=11, color=_INK)
    axes.set_xlim(0, 24)
    axes.set_ylim(0, top + 1.2)
    return figure


def network() -> Figure:
    """The map: ids, embedding, the residual stream with two branches in each layer, logits, a token."""
    figure, axes = canvas(17, 18.6, inches=0.45)
    x = _STREAM_X
    axes.plot([x, x], [3, 11.6], color=_STREAM, linewidth=5, zorder=0.5, solid_capstyle="butt")
    frame = [1, 16.4, 16.4, 1, 1], [3.9, 3.9, 10.9, 10.9, 3.9]
    axes.plot(*frame, "--", color="#888888", linewidth=1)
    axes.text(16.2, 10.5, "one layer, L times", fontsize=9, ha="right", va="center")
    axes.text(x + 0.4, 3.45, "residual stream [T D]", fontsize=9, va="center", color="#2f6fa8")
    _branch(axes, 4.9, "attention", ORANGE)
    _branch(axes, 8.1, "feed-forward network", GREEN)

    box(axes, 0.5, 0.2, 5, 1, "token ids [T]", GREY)
    box(axes, 0.5, 2, 5, 1, "embedding [V D]", BLUE)
    box(axes, 0.5, 11.6, 5, 1, "norm", GREY)
    box(axes, 0.5, 13.4, 5, 1, "output matrix [V D]", BLUE)
    box(axes, 0.5, 15.2, 5, 1, "logits [T V]", GREY)
    box(axes, 0.5, 17, 5, 1, "softmax of the last row", GREY)
    box(axes, 8, 17, 5, 1, "next token", GREY)
    for y in (1.2, 12.6, 14.4, 16.2):
        arrow(axes, (x, y), (x, y + 0.8))
    arrow(axes, (5.5, 17.5), (8, 17.5))
    arrow(axes, (x, 11.0), (x, 11.6))
    return figure


def _branch(axes: Axes, y: float, name: str, colour: str) -> None:
    """A part beside the stream: its input leaves at height y, its output is added a little higher."""
    x, middle = _STREAM_X, _PART_X + _PART_WIDTH / 2
    axes.plot([x], [y], "o", color=_INK, markersize=4, zorder=3)
    box(axes, 6.2, y - 0.5, 2.8, 1, "norm", GREY)
    box(axes, _PART_X, y - 0.5, _PART_WIDTH, 1, name, colour)
    arrow(axes, (x, y), (6.2, y))
    arrow(axes, (9, y), (_PART_X, y))
    arrow(axes, (middle, y + 0.5), (middle, y + 1.8), (x + 0.28, y + 1.8))
    axes.text(6.2, y + 1.9, "add", fontsize=8, va="bottom")
    style = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": _INK}
    axes.text(x, y + 1.8, "+", ha="center", va="center", fontsize=11, bbox=style, zorder=3)
