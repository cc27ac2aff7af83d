"""The pictures of lesson 06."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..drawings import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas
from ..pictures import heat_map

_COLOURS = [BLUE, ORANGE, GREEN, GREY]


def one_row(weights: Any, words: Sequence[str], name: str) -> Figure:
    """What each head [N] gives to each token [S] from one position, with the numbers."""
    heads = [f"head {n}" for n in range(len(weights))]
    figure, axes = plt.subplots(figsize=(1.6 + 0.8 * len(words), 1 + 0.38 * len(heads)))
    options = {"cmap": "Blues", "vmin": 0, "vmax": 1}
    image = heat_map(axes, weights, heads, words, numbers=".2f", **options)
    axes.set_title(name, fontsize=10)
    figure.colorbar(image, ax=axes, label="weight")
    return figure


def reshapes() -> Figure:
    """Two tokens, three heads, two numbers a head: the right way to [N T H] and the wrong one."""
    figure, axes = canvas(21.4, 8.4, inches=0.42)
    _cells(axes, 0.3, 3.4, [[(t, n) for n in range(3) for _ in range(2)] for t in range(2)])
    axes.text(3.9, 6.2, "flat q  [T, N H]", ha="center", fontsize=10)
    for base, first, how in [
        (5.2, True, "reshape(T, N, H).transpose(1, 0, 2)"),
        (0.9, False, "reshape(N, T, H)"),
    ]:
        axes.text(15.7, base + 2.6, how, ha="center", fontsize=10, family="monospace")
        for n in range(3):
            flat = [(t, head) for t in range(2) for head in range(3)]
            rows = [(t, n) for t in range(2)] if first else flat[2 * n : 2 * n + 2]
            _cells(axes, 10.4 + 4.1 * n, base, [[row, row] for row in rows])
            if first:
                axes.text(11.6 + 4.1 * n, base - 0.6, f"head {n}", ha="center", fontsize=9)
    axes.text(15.7, 0.3, "tokens and heads mixed", ha="center", fontsize=9)
    arrow(axes, (7.8, 5.2), (9.9, 6.2))
    arrow(axes, (7.8, 4.2), (9.9, 2.2))
    return figure


def _cells(axes: Axes, x: float, y: float, rows: list[list[tuple[int, int]]]) -> None:
    """Rows of cells from (x, y) up, each with its token's number and its head's colour."""
    for down, row in enumerate(rows):
        for right, (token, head) in enumerate(row):
            place = (x + 1.2 * right, y + 1.1 * (len(rows) - 1 - down))
            colour = _COLOURS[head]
            axes.add_patch(Rectangle(place, 1.2, 1.1, facecolor=colour, edgecolor="#333333"))
            middle = (place[0] + 0.6, place[1] + 0.55)
            axes.text(*middle, f"t{token}", ha="center", va="center", fontsize=9)


def groups(n_heads: int, n_kv_heads: int) -> Figure:
    """Query heads above the key/value heads that they read: one each, this model's groups, one for all."""
    step = 1.35
    figure, axes = canvas(n_heads * step + 2.7, 11.4)
    for row, kv_heads in enumerate([n_heads, n_kv_heads, 1]):
        group, base = n_heads // kv_heads, 7.8 - 3.8 * row
        name = "this model\n" if kv_heads == n_kv_heads else ""
        words = f"{name}N = {n_heads}\nK = {kv_heads}\nG = {group}"
        axes.text(0, base + 1.5, words, va="center", fontsize=10)
        for j in range(kv_heads):
            middle = 3 + step * (j * group + (group - 1) / 2)
            box(axes, middle - 0.5, base, 1, 0.8, f"kv{j}", _COLOURS[j % 4])
            for n in range(j * group, (j + 1) * group):
                left = 3 + step * n
                box(axes, left - 0.5, base + 2.2, 1, 0.8, f"q{n}", _COLOURS[j % 4])
                arrow(axes, (left, base + 2.2), (middle, base + 0.8))
    return figure


def patterns(weights: Any, words: Sequence[str], n_kv_heads: int) -> Figure:
    """The patterns [N T S] of all heads, those of one group in one row."""
    n_heads, tokens, _ = np.shape(weights)
    group = n_heads // n_kv_heads
    size = (2.6 * group + 1.4, 2.3 * n_kv_heads + 0.6)
    figure, panels = plt.subplots(n_kv_heads, group, figsize=size, squeeze=False)
    later = ~np.tri(tokens, dtype=bool)
    colours = plt.get_cmap("Blues").copy()
    colours.set_bad("#dddddd")
    image = None
    for n in range(n_heads):
        panel = panels.item(n // group, n % group)
        hidden = np.where(later, np.nan, np.asarray(weights[n]))
        below = words if n // group == n_kv_heads - 1 else [""] * tokens
        beside = words if n % group == 0 else [""] * tokens
        image = heat_map(panel, hidden, beside, below, cmap=colours, vmin=0, vmax=1)
        panel.set_title(f"q{n}, kv{n // group}", fontsize=10)
    assert image is not None
    figure.colorbar(image, ax=panels, label="weight", shrink=0.6)
    return figure
