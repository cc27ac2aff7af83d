"""Boxes and arrows for the lessons' drawings, in the units of a canvas."""

from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BLUE, ORANGE, GREEN, GREY, RED = "#cfe2f3", "#fce5cd", "#d9ead3", "#eeeeee", "#f4cccc"
_INK = "#333333"


def canvas(width: float, height: float, inches: float = 0.5) -> tuple[Figure, Axes]:
    """An empty figure whose axes go from 0 to width and height, a unit being `inches` long."""
    figure, axes = plt.subplots(figsize=(width * inches, height * inches))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = BLUE
) -> None:
    """A rounded box with its lower left corner at (x, y) and a text in its middle."""
    style = "round,pad=0,rounding_size=0.15"
    patch = FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=_INK)
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, *points: tuple[float, float], text: str = "") -> None:
    """A line through the points with a head at the last; the text stands at the first corner."""
    for (x0, y0), (x1, y1) in pairwise(points[:-1]):
        axes.plot([x0, x1], [y0, y1], color=_INK, linewidth=1, solid_capstyle="round")
    style = {"arrowstyle": "-|>", "color": _INK, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)
    if text:
        axes.text(*points[1 if len(points) > 2 else 0], f" {text}", fontsize=8, va="bottom")
