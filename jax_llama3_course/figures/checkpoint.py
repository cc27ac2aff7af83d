"""Pictures of lesson 02: the tree of the weights, where they are, and the two orders of q and k."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..drawings import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas


def tree(whole: Mapping[str, str], layer: Mapping[str, str]) -> Figure:
    """The tree from left to right: its root, the parts of the model, and the tensors of one layer.

    Both map names to what is written beside them; the part called `layers` opens into the layer.
    """
    height = 1.1 * len(layer)
    figure, axes = canvas(20, height, 0.42)
    middle = height / 2
    box(axes, 0.1, middle - 0.5, 2.5, 1, "params", GREY)
    gap = height / len(whole)
    for place, (name, text) in enumerate(whole.items()):
        y = height - gap * (place + 0.5)
        colour = ORANGE if name == "layers" else BLUE
        box(axes, 4.4, y - 0.5, 6, 1, f"{name}  {text}", colour)
        arrow(axes, (2.6, middle), (4.4, y))
        if name == "layers":
            for row, (leaf, size) in enumerate(layer.items()):
                low = height - 1.1 * row - 1
                box(axes, 13, low, 6.6, 0.9, f"{leaf}  {size}", GREEN)
                arrow(axes, (10.4, y), (13, low + 0.45))
    return figure


def shares(models: Mapping[str, Mapping[str, int]]) -> Figure:
    """A stacked bar for each model: how its parameters are shared among its parts."""
    figure, axes = plt.subplots(figsize=(7, 2.8))
    left = np.zeros(len(models))
    for part in next(iter(models.values())):
        share = np.array([100 * parts[part] / sum(parts.values()) for parts in models.values()])
        if share.max() < 1:  # too thin to be seen
            continue
        axes.barh(list(models), share, left=left, label=part)
        left += share
    axes.invert_yaxis()
    axes.set_xlabel("share of all parameters, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def two_orders(order: Sequence[int]) -> Figure:
    """The rows of a head above, interleaved, and below in the given order, the pairs in one colour."""
    rows = len(order)
    figure, axes = canvas(2 * rows + 4, 5.4)
    colours = (BLUE, ORANGE, GREEN)
    for row in range(rows):
        colour = colours[row // 2 % len(colours)]
        x, target = 2 * row + 3.5, 2 * list(order).index(row) + 3.5
        box(axes, x, 3.7, 1.4, 1, str(row), colour)
        box(axes, target, 0.5, 1.4, 1, str(row), colour)
        arrow(axes, (x + 0.7, 3.7), (target + 0.7, 1.5))
    for y, name in ((4.2, "interleaved"), (1.0, "half-split")):
        axes.text(3.2, y, name, ha="right", va="center", fontsize=9)
    return figure
