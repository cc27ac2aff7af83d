"""The pictures of lesson 12: distributions, where a filter cuts, draws, and the ids of a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..drawings import BLUE, GREEN, GREY, ORANGE, canvas

_INK, _STRONG = "#333333", "#c0392b"
_KINDS = {"special": ORANGE, "role": GREEN, "newline": GREY, "text": BLUE}


def temperatures(labels: Sequence[str], probabilities: Mapping[float, Any]) -> Figure:
    """Bars of the same tokens' probabilities at several temperatures, on a logarithmic scale."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    width = 0.8 / len(probabilities)
    for index, (temperature, values) in enumerate(probabilities.items()):
        places = np.arange(len(labels)) + (index - (len(probabilities) - 1) / 2) * width
        axes.bar(places, values, width, label=f"temperature {temperature}")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 4)
    axes.set_ylabel("probability")
    axes.legend(ncols=len(probabilities), loc="upper right", frameon=False)
    return figure


def top_p_cut(
    panels: Mapping[str, tuple[Any, Sequence[str]]], limit: float, shown: int = 12
) -> Figure:
    """For each title sorted probabilities and labels: bars, their running sum, and where top-p cuts."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(10, 3.9), sharey=True, squeeze=False)
    for axes, (title, (probabilities, labels)) in zip(all_axes[0], panels.items(), strict=True):
        _cut(axes, np.asarray(probabilities)[:shown], limit)
        axes.set_xticks(
            range(shown), labels[:shown], rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.set_title(title, fontsize=10)
    all_axes[0, 0].set_ylabel("probability")
    handles = [
        Patch(facecolor=BLUE, edgecolor=_INK, label="kept"),
        Patch(facecolor=GREY, edgecolor=_INK, label="dropped"),
        all_axes[0, 0].lines[0],
        all_axes[0, 0].lines[1],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _cut(axes: Axes, probabilities: Any, limit: float) -> None:
    sums = np.cumsum(probabilities)
    kept = int((sums - probabilities < limit).sum())
    count = len(probabilities)
    colours = [BLUE if place < kept else GREY for place in range(count)]
    axes.bar(range(count), probabilities, color=colours, edgecolor=_INK, linewidth=0.8)
    axes.plot(range(count), sums, "o-", color=_INK, markersize=4, label="sum so far")
    axes.axhline(limit, color=_STRONG, linestyle="--", label=f"top-p = {limit}")
    axes.axvline(kept - 0.5, color=_STRONG)
    axes.text(kept - 0.4, 0.42, f"cut after {kept}", color=_STRONG, fontsize=9)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(-0.6, count - 0.4)


def deviations(groups: Mapping[str, Any], bound: float, wrong: Mapping[str, Any]) -> Figure:
    """Frequency minus probability, a dot for each token, in a band of plus and minus `bound`.

    The groups of `wrong` are drawn in another colour after the others.
    """
    figure, axes = plt.subplots(figsize=(9, 3.8))
    axes.axhspan(-bound, bound, facecolor=GREEN, label=f"allowed: ±{bound:.4f}")
    axes.axhline(0, color=_INK, linewidth=0.8)
    start, middles = 0, []
    for differences, colour in [
        *((each, _INK) for each in groups.values()),
        *((each, _STRONG) for each in wrong.values()),
    ]:
        places = start + np.arange(len(differences))
        axes.vlines(places, 0, differences, color=colour, linewidth=1)
        axes.plot(places, differences, "o", color=colour, markersize=4)
        middles.append(places.mean())
        start += len(differences) + 1
        if len(middles) < len(groups) + len(wrong):
            axes.axvline(start - 1, color="#bbbbbb", linewidth=0.8)
    axes.set_xticks(middles, [*groups, *wrong], fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, start - 1)
    axes.set_ylim(top=1.4 * bound)
    axes.set_ylabel("frequency minus probability")
    axes.legend(loc="upper left", edgecolor="none", framealpha=1)
    return figure


def conversation(lines: Sequence[Sequence[tuple[str, int, str]]], width: float = 24) -> Figure:
    """Every id of a conversation as a cell, coloured by its kind; a line ends where a message does.

    A cell is a kind, an id and a text. Lines that are too long go on in the next row.
    """
    rows: list[list[tuple[float, float, str, int, str]]] = []
    for line in lines:
        place = width
        for number, (kind, token, text) in enumerate(line):
            size = max(0.175 * len(text), 0.13 * len(str(token))) + 0.5
            if number == 0 or place + size > width:
                rows.append([])
                place = 0.05 if number == 0 else 1.0
            rows[-1].append((place, size, kind, token, text))
            place += size + 0.1
    figure, axes = canvas(width, 1.45 * len(rows) + 1, inches=0.42)
    for row, cells in enumerate(rows):
        bottom = 1.45 * (len(rows) - 1 - row) + 1
        for place, size, kind, token, text in cells:
            corner = (place, bottom)
            axes.add_patch(
                Rectangle(corner, size, 1.2, facecolor=_KINDS[kind], edgecolor=_INK, lw=0.8)
            )
            middle = place + size / 2
            axes.text(middle, bottom + 0.8, text, ha="center", va="center", fontsize=9)
            axes.text(middle, bottom + 0.3, str(token), ha="center", va="center", fontsize=7)
    handles = [Patch(facecolor=c, edgecolor=_INK, label=kind) for kind, c in _KINDS.items()]
    axes.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False)
    return figure
