"""The pictures of lesson 07."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ..drawings import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas

_INK = "#333333"


def swiglu() -> Figure:
    """The feed-forward network: two products side by side, joined by a third after SiLU."""
    figure, axes = canvas(23.4, 9.2, inches=0.42)
    box(axes, 0.3, 3.7, 1.7, 1.8, "h\n[T D]", GREY)
    for middle, name in [(7.2, "gate"), (2, "up")]:
        arrow(axes, (2, 4.6), (2.8, 4.6), (2.8, middle), (3.6, middle))
        box(axes, 3.6, middle - 0.9, 2.6, 1.8, f"$W_{{{name}}}$\n[F D]", BLUE)
        arrow(axes, (6.2, middle), (7.2, middle))
        box(axes, 7.2, middle - 1.6, 1.8, 3.2, f"{name}\n[T F]", GREY)
    arrow(axes, (9, 7.2), (10, 7.2))
    box(axes, 10, 6.3, 2, 1.8, "SiLU", ORANGE)
    arrow(axes, (12, 7.2), (13.4, 7.2), (13.4, 5.05))
    arrow(axes, (9, 2), (13.4, 2), (13.4, 4.15))
    _circle(axes, 13.4, 4.6, r"$\odot$")
    arrow(axes, (13.85, 4.6), (14.8, 4.6))
    box(axes, 14.8, 3, 1.8, 3.2, "inner\n[T F]", GREY)
    arrow(axes, (16.6, 4.6), (17.6, 4.6))
    box(axes, 17.6, 3.7, 2.6, 1.8, "$W_{down}$\n[D F]", BLUE)
    arrow(axes, (20.2, 4.6), (21.2, 4.6))
    box(axes, 21.2, 3.7, 1.9, 1.8, "FFN(h)\n[T D]", GREEN)
    axes.text(12.2, 7.35, "how much of it", fontsize=9, va="bottom")
    axes.text(11.2, 2.2, "what is let through", fontsize=9, ha="center", va="bottom")
    return figure


def residual() -> Figure:
    """One block: a straight line, and two branches that leave it before a norm and are added to it."""
    figure, axes = canvas(25, 6.6, inches=0.42)
    for start, end, name, weight, colour in [
        (2.4, 12, "attention", "attn_norm", BLUE),
        (13.6, 23.2, "feed-forward", "ffn_norm", ORANGE),
    ]:
        axes.plot(start, 5, "o", color=_INK, markersize=5)
        arrow(axes, (start, 5), (start, 1.4), (start + 0.8, 1.4))
        box(axes, start + 0.8, 0.5, 3.4, 1.8, f"RMSNorm\n{weight}", GREY)
        arrow(axes, (start + 4.2, 1.4), (start + 5, 1.4))
        box(axes, start + 5, 0.5, 3.4, 1.8, name, colour)
        arrow(axes, (start + 8.4, 1.4), (end, 1.4), (end, 4.55))
        _circle(axes, end, 5, "+")
    arrow(axes, (0.2, 5), (11.55, 5))
    arrow(axes, (12.45, 5), (22.75, 5))
    arrow(axes, (23.65, 5), (24.9, 5))
    for x, text in [(1.3, "$x$"), (6.8, "resid_pre, not normed"), (17.8, "resid_mid, not normed")]:
        axes.text(x, 5.25, text, ha="center", fontsize=10)
    axes.text(24.2, 5.6, "resid_post", ha="center", fontsize=9)
    return figure


def _circle(axes: Axes, x: float, y: float, sign: str) -> None:
    axes.add_patch(Circle((x, y), 0.45, facecolor=GREEN, edgecolor=_INK, zorder=3))
    axes.text(x, y - 0.04, sign, ha="center", va="center", fontsize=13, zorder=4)


def curves(points: Any, named: Mapping[str, Any]) -> Figure:
    """Functions of a number a, one line each; every second is dashed."""
    figure, axes = plt.subplots(figsize=(6, 3))
    for index, (name, values) in enumerate(named.items()):
        axes.plot(points, values, ["-", "--"][index % 2], label=name)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xlabel("a")
    axes.legend()
    return figure


def kept(shares: Sequence[float], named: Mapping[str, Sequence[float]]) -> Figure:
    """How far a sum is from the whole when only a share of its terms is kept."""
    figure, axes = plt.subplots(figsize=(6, 3))
    for name, errors in named.items():
        axes.plot(100 * np.asarray(shares), errors, "o-", label=name)
    axes.set_ylim(-0.05, 1.1)
    axes.set_xlabel("terms kept, %")
    axes.set_ylabel("error / size of the sum")
    axes.legend()
    return figure


def sizes(values: Any, words: Sequence[str]) -> Figure:
    """The size of each token's row [T] after each number of layers [P], on a logarithmic scale."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for position, word in enumerate(words):
        axes.semilogy(np.asarray(values)[:, position], marker=".", label=f"{position}: {word}")
    axes.set_xlabel("layers done")
    axes.set_ylabel("root mean square of the row")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def skipped(probabilities: Sequence[float], whole: float, what: str) -> Figure:
    """A bar for each layer that is left out, and a line for the whole network."""
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.bar(range(len(probabilities)), probabilities)
    axes.axhline(whole, color=_INK, linestyle="--", linewidth=1, label="all layers")
    axes.set_xlabel("layer that is skipped")
    axes.set_ylabel(what)
    axes.set_ylim(0, 1)
    axes.legend()
    return figure


def depth(named: Mapping[str, Any]) -> Figure:
    """How strongly the result depends on the rows at the entry of each layer, logarithmically."""
    figure, axes = plt.subplots(figsize=(6, 3))
    for index, (name, values) in enumerate(named.items()):
        axes.semilogy(np.asarray(values), ["-", "--"][index % 2], marker=".", label=name)
    axes.set_xlabel("layer")
    axes.set_ylabel("effect on the result")
    axes.legend()
    return figure
