"""Pictures of lesson 11: a cache that grows and one that is filled, and a cache that is forked."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .. import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas

_INK = "#333333"


def grow_and_write(prompt: int, rounds: int) -> Figure:
    """The array of every round and the program that its shape needs: growing, and of fixed size."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6))
    slots = prompt + rounds + 2
    for panel, is_fixed in zip(panels, (False, True), strict=True):
        for r in range(rounds):
            held = prompt + r
            end = slots if is_fixed else held
            for s in range(end):
                is_new = s < held and (r == 0 or s == held - 1)
                colour = ORANGE if is_new else BLUE if s < held else GREY
                cell = Rectangle((s, r + 0.1), 1, 0.8, facecolor=colour, edgecolor=_INK)
                panel.add_patch(cell)
            program = f"program {min(r, 1) + 1 if is_fixed else r + 1}"
            panel.text(end + 0.4, r + 0.5, program, va="center", fontsize=9)
        panel.set_xlim(0, slots + 4)
        panel.set_ylim(rounds, 0)
        panel.set_xticks([])
        panel.set_yticks(np.arange(rounds) + 0.5, range(rounds))
        panel.set_ylabel("round")
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
    panels[0].set_title("grow: a new shape, a new program")
    panels[1].set_title("write: two programs in all")
    colours = (ORANGE, BLUE, GREY)
    handles = [Rectangle((0, 0), 1, 1, facecolor=c, edgecolor=_INK) for c in colours]
    names = ["written in this round", "kept", "empty slot"]
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


def forked(
    prefix: Sequence[str], continuations: Sequence[Sequence[str]], answers: Sequence[str]
) -> Figure:
    """One cache that holds a prefix, a copy of it for every continuation, and the tokens predicted."""
    longest = max(map(len, continuations))
    slots = len(prefix) + longest + 1
    width = 1.9
    count = len(continuations)
    left = len(prefix) * width + 0.4 * width + 2.4
    figure, axes = canvas(left + slots * width + 3.0, 1.9 * count + 1.2, inches=0.42)
    middle = 1.9 * (count - 1) / 2 + 0.7
    _slots(axes, 0.2, middle, width, prefix, (), len(prefix))
    end = 0.2 + len(prefix) * width
    axes.text(end / 2, middle + 1.25, "prefilled once", ha="center", va="bottom", fontsize=9)
    for row, (words, answer) in enumerate(zip(continuations, answers, strict=True)):
        y = 1.9 * (count - 1 - row) + 0.7
        arrow(axes, (end + 0.15, middle + 0.5), (left - 0.15, y + 0.5))
        _slots(axes, left, y, width, prefix, words, slots)
        right = left + slots * width
        arrow(axes, (right + 0.15, y + 0.5), (right + 0.8, y + 0.5))
        box(axes, right + 0.95, y, width, 1.0, repr(answer), GREEN)
    axes.text((end + left) / 2, 1.9 * count + 0.2, "copy", ha="center", fontsize=9)
    return figure


def _slots(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    prefix: Sequence[str],
    words: Sequence[str],
    slots: int,
) -> None:
    filled = [*((word, BLUE) for word in prefix), *((word, ORANGE) for word in words)]
    for place in range(slots):
        word, colour = filled[place] if place < len(filled) else ("", GREY)
        box(axes, x + place * width, y, width - 0.08, 1.0, repr(word) if word else "", colour)
