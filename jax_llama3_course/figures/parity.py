"""The pictures of lesson 08: how wrong each mutation is, and where it begins."""

from collections.abc import Collection, Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

_RIGHT, _WRONG = "#e08a3c", "#8c8c8c"


def mutations(
    wrong_by: Mapping[str, float], kept: Collection[str], tolerance: float, noise: float
) -> Figure:
    """A bar for each mutation, the smallest first; the colour says whether the next token is right."""
    figure, axes = plt.subplots(figsize=(8, 5))
    order = sorted(wrong_by, key=lambda name: wrong_by[name])
    colours = [_RIGHT if name in kept else _WRONG for name in order]
    axes.barh(order, [wrong_by[name] for name in order], color=colours)
    axes.set_xscale("log")
    axes.set_xlim(4e-6, 200)
    axes.set_ylim(-0.6, len(order) + 0.8)
    for place, text, colour, style, side in [
        (noise, "float32 noise  ", "tab:blue", "--", "right"),
        (tolerance, "  tolerance", "black", "-", "left"),
    ]:
        axes.axvline(place, color=colour, linestyle=style, linewidth=1.2)
        axes.text(place, len(order) - 0.1, text, fontsize=9, color=colour, ha=side)
    axes.set_xlabel("largest difference of a logit, at any position of the text")
    handles = [
        Patch(color=_RIGHT, label="the next token is still right"),
        Patch(color=_WRONG, label="the next token is wrong"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def layers(curves: Mapping[str, Any]) -> Figure:
    """Relative differences from the reference, from the first layer [0] being passed to the end."""
    figure, axes = plt.subplots(figsize=(8, 3.8))
    for (name, curve), marker in zip(curves.items(), "o^sv", strict=True):
        axes.plot(range(1, len(curve)), curve[1:], marker=marker, markersize=4, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("layers done (the last point is after the final norm)")
    axes.set_ylabel("relative difference")
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure
