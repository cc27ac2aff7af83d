"""Pictures of lesson 10: what a new token reads, the mask of a text that goes on, the rows computed."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .. import BLUE, GREY, ORANGE, arrow, box, canvas


def new_token(old: Sequence[str], new: str) -> Figure:
    """The query of a new token at the keys of all tokens; the weights at their values."""
    figure, axes = canvas(4.6 + 2 * len(old), 7.6)
    words = [*old, new]
    for place, word in enumerate(words):
        x, is_new = 2.4 + 2 * place, place == len(old)
        axes.text(x + 0.75, 0.3, repr(word), ha="center", fontsize=10, family="monospace")
        colour = ORANGE if is_new else BLUE
        box(axes, x, 1.0, 1.5, 0.9, f"$v_{place}$", colour)
        box(axes, x, 2.4, 1.5, 0.9, f"$k_{place}$", colour)
        if is_new:
            box(axes, x, 5.3, 1.5, 0.9, f"$q_{place}$", ORANGE)
        arrow(axes, (x + 0.75, 4.5), (x + 0.75, 3.35))
    middle = 2.4 + 2 * len(old) + 0.75
    axes.plot([3.15, middle], [4.5, 4.5], color="#333333", linewidth=1)
    axes.plot([middle, middle], [4.5, 5.3], color="#333333", linewidth=1)
    axes.text(0.2, 5.75, "query", va="center", fontsize=10)
    axes.text(0.2, 2.85, "keys", va="center", fontsize=10)
    axes.text(0.2, 1.45, "values", va="center", fontsize=10)
    axes.text(2.4, 5.75, "old queries: not needed", va="center", fontsize=10, color="#666666")
    axes.text(2.4, 7.0, "blue: read from the cache", va="center", fontsize=10)
    axes.text(middle + 0.75, 7.0, "orange: new", va="center", ha="right", fontsize=10)
    return figure


def mask(allowed: np.ndarray, old: int) -> Figure:
    """What `where` makes of the scores: kept where the mask is true, minus infinity elsewhere."""
    new, total = allowed.shape
    figure, axes = canvas(4.2 + 1.4 * total, new + 3.4)
    for i in range(new):
        y = new + 0.1 - i
        axes.text(3.1, y + 0.45, f"$q_{old + i}$", ha="right", va="center", fontsize=11)
        for j in range(total):
            text = f"$s_{{{old + i}{j}}}$" if allowed[i, j] else "$-\\infty$"
            colour = (BLUE if j < old else ORANGE) if allowed[i, j] else GREY
            box(axes, 3.5 + 1.4 * j, y, 1.3, 0.9, text, colour)
    for j in range(total):
        axes.text(4.15 + 1.4 * j, new + 1.3, f"$k_{j}$", ha="center", fontsize=11)
    wall = 3.45 + 1.4 * old
    axes.plot([wall, wall], [0.95, new + 3.0], color="#333333", linewidth=1.5, linestyle="--")
    top = new + 2.4
    axes.text((3.5 + wall) / 2, top, f"P = {old} old keys", ha="center", fontsize=10)
    end = 3.5 + 1.4 * total
    axes.text((wall + end) / 2, top, f"T = {new} new keys", ha="center", fontsize=10)
    axes.text(0.2, new / 2 + 1.05, f"T = {new}\nnew\nqueries", va="center", fontsize=10)
    shape = f"(T, P + T) = ({new}, {total})"
    below = f"{shape}:  True keeps the score, False puts $-\\infty$ in its place"
    axes.text((0.2 + end) / 2, 0.3, below, ha="center", fontsize=10)
    return figure


def rows(prompt: int, rounds: int) -> Figure:
    """Which positions go through the network in each round, without a cache and with one."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    last = prompt + rounds - 1
    for panel, is_cached in zip(panels, (False, True), strict=True):
        count = 0
        for r in range(rounds):
            for t in range(prompt + r):
                is_kept = is_cached and r > 0 and t < prompt + r - 1
                count += not is_kept
                colour = BLUE if is_kept else ORANGE
                square = Rectangle((t, r), 1, 1, facecolor=colour, edgecolor="white")
                panel.add_patch(square)
        panel.set_xlim(0, last)
        panel.set_ylim(rounds, 0)
        panel.set_xticks(np.arange(last) + 0.5, range(last))
        panel.set_yticks(np.arange(rounds) + 0.5, range(rounds))
        panel.tick_params(length=0)
        panel.set_xlabel("position")
        panel.set_title(f"{'with a KV cache' if is_cached else 'without'}: {count} rows")
    panels[0].set_ylabel("round")
    handles = [Rectangle((0, 0), 1, 1, facecolor=c) for c in (ORANGE, BLUE)]
    names = ["computed", "read from the cache"]
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure
