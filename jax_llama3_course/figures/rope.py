"""Pictures of RoPE: turning arrows, scores over the distance, wavelengths and their scaling."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle

from ..drawings import BLUE, GREEN, ORANGE
from ..pictures import heat_map

_QUERY, _KEY = "tab:blue", "tab:orange"


def circles(
    omega: Any,
    pairs: Sequence[int],
    positions: Sequence[int],
    places: Sequence[tuple[int, int]],
) -> Figure:
    """Arrows on the unit circle.

    Above: one arrow at several positions, for several pairs. Below: pair 0 of a query and of a key
    with the angle between them, at each pair (m, n) of places.
    """
    figure, panels = plt.subplots(2, 3, figsize=(9, 6.6))
    for axes, r in zip(panels[0], pairs, strict=True):
        _circle(axes, f"pair r = {r}: {omega[r]:.3f} rad per position")
        for m, colour in zip(positions, ("tab:blue", "tab:orange", "tab:green"), strict=True):
            _hand(axes, m * omega[r], colour, str(m))
    for axes, (m, n) in zip(panels[1], places, strict=True):
        _circle(axes, f"query at m = {m}, key at n = {n}")
        _hand(axes, m * omega[0], _QUERY, "q")
        _hand(axes, n * omega[0], _KEY, "k")
        start, end = np.rad2deg(n * omega[0]), np.rad2deg(m * omega[0])
        axes.add_patch(Arc((0, 0), 0.7, 0.7, theta1=start, theta2=end, color="#555555"))
        middle = np.deg2rad((start + end) / 2)
        words = f"{end - start:.1f}°"
        place = (0.62 * np.cos(middle), 0.62 * np.sin(middle))
        axes.text(*place, words, ha="center", va="center", fontsize=9)
    return figure


def _circle(axes: Axes, title: str) -> None:
    axes.add_patch(Circle((0, 0), 1, fill=False, color="#bbbbbb"))
    axes.plot([0, 1], [0, 0], color="#888888", linestyle="--", linewidth=1)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), xticks=(), yticks=())
    axes.spines[:].set_visible(False)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10)


def _hand(axes: Axes, angle: float, colour: str, name: str) -> None:
    tip = np.array([np.cos(angle), np.sin(angle)])
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.5}
    axes.annotate("", xy=tuple(tip), xytext=(0, 0), arrowprops=style)
    axes.text(1.2 * tip[0], 1.2 * tip[1], name, color=colour, ha="center", va="center")


def score_over_distance(single: Mapping[str, Any], together: Mapping[str, Any]) -> Figure:
    """Scores over the distance: of single pairs for 0, 1, 2, ..., and of all pairs on a long scale."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for name, values in single.items():
        left.plot(values, ".-", markersize=4, linewidth=1, label=name)
    left.set_title("one pair alone")
    left.set_xlabel("distance")
    left.set_ylabel("score, as a share of that at distance 0")
    for name, values in together.items():
        right.semilogx(np.arange(1, len(values)), values[1:], linewidth=1, label=name)
    right.axhline(1, color="grey", linestyle=":", linewidth=1)
    right.set_title("all pairs together")
    right.set_xlabel("distance (logarithmic)")
    for axes in (left, right):
        axes.set_ylim(-1.1, 1.65)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
        axes.legend(fontsize=8, loc="upper right", ncols=1)
    return figure


def toeplitz(matrices: Mapping[str, Any]) -> Figure:
    """Scores of one query and one key at all places, one panel for each way of placing them."""
    figure, panels = plt.subplots(1, len(matrices), figsize=(4 * len(matrices), 3.9))
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = heat_map(axes, matrix, cmap="viridis")
        axes.set_aspect("equal")
        ticks = range(0, len(matrix), 10)
        axes.set_xticks(ticks, [str(t) for t in ticks], rotation=0, ha="center")
        axes.set_yticks(ticks, [str(t) for t in ticks])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("position n of the key")
        figure.colorbar(image, ax=axes, shrink=0.75).ax.set_title("score", fontsize=8)
    panels[0].set_ylabel("position m of the query")
    return figure


def wavelengths(rows: Mapping[str, Any], context: int) -> Figure:
    """Every pair's wavelength, for several models, with a line at the length of the context."""
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
    for name, values in rows.items():
        axes.semilogy(np.arange(len(values)) / len(values), values, ".-", label=name)
    axes.axhline(context, color="#888888", linestyle="--", linewidth=1)
    axes.text(0.01, context * 1.2, f"context of {context} positions", fontsize=8)
    axes.set_xlabel("pair, r / R")
    axes.set_ylabel("wavelength in positions")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def scaling(results: Mapping[str, tuple[Any, Any, Any]]) -> Figure:
    """Frequencies before and after a scaling, and their ratio, with the region of every pair.

    `results` holds for each model the frequencies before, those after, and the regions' names.
    """
    figure, panels = plt.subplots(2, 2, figsize=(9, 5.5), sharex="col")
    shades = {"fast": GREEN, "between": ORANGE, "slow": BLUE}
    for (top, bottom), (name, result) in zip(panels.T, results.items(), strict=True):
        before, after, regions = result
        for axes in (top, bottom):
            for region, shade in shades.items():
                inside = np.flatnonzero(regions == region)
                axes.axvspan(inside[0] - 0.5, inside[-1] + 0.5, color=shade, label=region)
            axes.set_xlim(-0.5, len(before) - 0.5)
        top.semilogy(before, "o", color="#888888", markersize=3, label="before")
        top.semilogy(after, ".", color="tab:red", markersize=4, label="after")
        top.set_title(name, fontsize=10)
        top.set_ylabel("radians per position")
        top.legend(fontsize=7, loc="lower left")
        bottom.plot(before / after, ".-", color="tab:red", markersize=4)
        bottom.set_ylabel("times slower")
        bottom.set_xlabel("pair r")
    return figure
