"""Pictures of lesson 14: rooflines, and the tiles of flash attention."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..drawings import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas
from ..pictures import plain_logarithms


class Points(NamedTuple):
    """Work on a roofline: FLOPs per byte, FLOP/s, and how it is drawn and named."""

    label: str
    marker: str
    intensity: Sequence[float]
    speed: Sequence[float]


def roofline(peak: float, bandwidth: float, series: Sequence[Points]) -> Figure:
    """A machine's limit over the arithmetic intensity, and measured points under it."""
    figure, axes = plt.subplots(figsize=(7, 4))
    over = np.geomspace(0.2, 300, 400)
    axes.plot(over, np.minimum(peak, over * bandwidth) / 1e9, color="black", label="limit")
    for points in series:
        speed = np.array(points.speed) / 1e9
        axes.plot(points.intensity, speed, points.marker, markersize=8, label=points.label)
    axes.axvline(peak / bandwidth, color="grey", linestyle=":", label="corner")
    plain_logarithms(axes)
    _scale(axes)
    axes.set_ylabel("GFLOP/s")
    return figure


def two_rooflines(
    machines: Sequence[tuple[str, float, float]], work: Sequence[tuple[str, float]]
) -> Figure:
    """The limits of several machines (name, peak, bandwidth), and work (name, intensity) on the last."""
    figure, axes = plt.subplots(figsize=(7, 4.4))
    over = np.geomspace(0.3, 4000, 600)
    for name, peak, bandwidth in machines:
        (line,) = axes.plot(over, np.minimum(peak, over * bandwidth) / 1e9, label=name)
        axes.plot(peak / bandwidth, peak / 1e9, "|", color=line.get_color(), markersize=14)
    _, peak, bandwidth = machines[-1]
    for name, intensity in work:
        speed = min(peak, intensity * bandwidth) / 1e9
        axes.plot(intensity, speed, "o", color="black", markersize=5)
        axes.annotate(
            name, (intensity, speed), (8, -12), textcoords="offset points", fontsize=9, va="top"
        )
    axes.set_yscale("log")
    _scale(axes)
    axes.set_ylabel("GFLOP/s")
    return figure


def _scale(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("arithmetic intensity, FLOPs per byte")
    axes.legend(loc="lower right", fontsize=9)


def seconds_to_tokens(prompts: Sequence[int], first: Sequence[float], after: float) -> Figure:
    """The least time to the first token by length of the prompt, and to every token after it."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    axes.plot(prompts, np.array(first) * 1e3, "o-", label="first token")
    axes.axhline(after * 1e3, color="tab:orange", label="each token after it")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(prompts, [f"{prompt:,}" for prompt in prompts])
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("milliseconds, at least")
    axes.legend()
    return figure


def tiles(n_tiles: int = 4) -> Figure:
    """The square of scores, of which one column of tiles exists at a time, and what is carried along."""
    figure, axes = canvas(15, 6.6)
    side = 4.0 / n_tiles
    for column in range(n_tiles):
        for row in range(n_tiles):
            hidden = column > row
            colour = GREY if hidden else (ORANGE if column == 1 else "white")
            box(axes, 1.6 + column * side, 4.6 - row * side, side, side, "", colour)
    axes.text(3.6, 6.0, "keys, one tile at a time", ha="center", fontsize=9)
    axes.text(1.3, 3.6, "queries", rotation=90, ha="center", va="center", fontsize=9)
    axes.text(3.6, 0.9, "grey: hidden by the mask", ha="center", fontsize=9)
    box(axes, 9.2, 4.3, 5.2, 1.1, "largest score so far  m", BLUE)
    box(axes, 9.2, 2.8, 5.2, 1.1, "sum of exp(score - m)", GREEN)
    box(axes, 9.2, 1.3, 5.2, 1.1, "sum of exp(score - m) · value", GREEN)
    arrow(axes, (5.8, 3.6), (9.0, 3.6), text="updates")
    return figure


def by_bits(bits: Sequence[int], divergences: Sequence[float]) -> Figure:
    """How far the predictions move when weights are rounded to so many bits."""
    figure, axes = plt.subplots(figsize=(6, 2.8))
    axes.plot(bits, divergences, "o-")
    axes.set_yscale("log")
    axes.set_xticks(bits)
    axes.set_xlabel("bits per weight")
    axes.set_ylabel("KL divergence, nats")
    return figure
