"""The pictures of lesson 09: the lens, the sink, patches and heads that are switched off."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..pictures import bars, heat_map

_SETTLED = LinearSegmentedColormap.from_list("settled", ["#fff4e6", "#f2a65a"])
_OTHER = LinearSegmentedColormap.from_list("other", ["#f7f9fb", "#a9c5e0"])


def visible(text: str) -> str:
    """A token as a picture can show it: ␣ for a space, escapes for what fonts lack."""
    shown = repr(text)[1:-1].encode("ascii", "backslashreplace").decode()
    return shown[:12].replace("$", r"\$").replace(" ", "␣")


def lens(
    best: Sequence[Sequence[str]], certain: Any, places: Any, words: Sequence[str], answer: str
) -> Figure:
    """The likeliest token after every layer [L][T] with its probability, and the answer's place [L].

    A cell is orange where the token is the one with which its column ends.
    """
    certain, places = np.asarray(certain), np.asarray(places)
    n_layers = len(best)
    settled = np.array([[a == b for a, b in zip(row, best[-1], strict=True)] for row in best])
    size = (9.5, 0.27 * n_layers + 1.6)
    figure, (table, line) = plt.subplots(1, 2, figsize=size, width_ratios=(5, 2), sharey=True)
    colours = np.where(settled[..., None], _SETTLED(certain), _OTHER(certain))
    table.imshow(colours, aspect="auto", origin="lower")
    for row, tokens in enumerate(best):
        for column, token in enumerate(tokens):
            text = f"{visible(token)}  {certain[row, column]:.2f}"
            table.text(column, row, text, ha="center", va="center", fontsize=8)
    table.spines[:].set_visible(False)
    table.set_xticks(range(len(words)), [visible(word) for word in words])
    table.set_yticks(range(0, n_layers, 5))
    table.set_xlabel("the token that is read")
    table.set_ylabel("after layer")

    line.plot(places, range(n_layers), marker=".", color="#d9772b")
    line.set_xscale("log")
    line.invert_xaxis()
    line.set_xlabel(f"place of {visible(answer)} in the last column")
    line.grid(axis="x", alpha=0.4)
    handles = [
        Patch(color=_SETTLED(0.9), label="what the column ends with"),
        Patch(color=_OTHER(0.9), label="another token"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def sink(share: Any, pattern: Any, layer: int, head: int, words: Sequence[str]) -> Figure:
    """What each head gives to the first token, [L N], and the whole pattern [T T] of one head."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5), width_ratios=(2, 3))
    image = heat_map(left, share, origin="lower", cmap="Blues", vmin=0, vmax=1)
    left.set_xticks(range(np.shape(share)[1]), range(np.shape(share)[1]), rotation=0, ha="center")
    marked = range(0, len(share), 5)
    left.set_yticks(marked, list(map(str, marked)))
    left.set_xlabel("head")
    left.set_ylabel("layer")
    left.set_title("weight on the first token", fontsize=10)
    _ring(left, head, layer)
    figure.colorbar(image, ax=left)

    names = [visible(word) for word in words]
    past = np.where(np.tri(len(words), dtype=bool), pattern, np.nan)
    heat_map(right, past, names, names, cmap="Blues", vmin=0, vmax=1)
    right.set_facecolor("#eeeeee")
    right.tick_params(labelsize=8)
    right.set_xlabel("looks at (grey: the future)")
    right.set_ylabel("looks from", labelpad=10)
    right.set_title(f"the ringed head: layer {layer}, head {head}", fontsize=10)
    return figure


def first_words(weights: Sequence[float], words: Sequence[str], even: float) -> Figure:
    """The weight on the first token for each word that stands there; the dashed line is an even spread."""
    figure = bars(weights, [visible(word) for word in words], "weight on the first token")
    axes = figure.axes[0]
    figure.set_size_inches(7, 0.28 * len(words) + 1)
    axes.axvline(even, color="#333333", linestyle="--", linewidth=1.2)
    axes.text(even, -0.75, "  if spread evenly", fontsize=8, va="center")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(words) - 0.4, -1.2)
    axes.set_ylabel("first token")
    return figure


def patching(
    lead: Any, words: Sequence[str], answers: tuple[str, str], unpatched: tuple[float, float]
) -> Figure:
    """The lead of the second answer over the first, [L T], on a scale whose middle is a tie.

    `unpatched` is the lead in the two runs that nothing is changed in.
    """
    lead = np.asarray(lead)
    limit = float(np.ceil(max(np.abs(lead).max(), *map(abs, unpatched))))
    first, second = map(visible, answers)
    figure, axes = plt.subplots(figsize=(9.5, 3.3))
    names = [visible(word) for word in words]
    image = heat_map(axes, lead.T, names, cmap="RdBu_r", vmin=-limit, vmax=limit)
    marked = range(0, len(lead), 5)
    axes.set_xticks(marked, list(map(str, marked)), rotation=0, ha="center")
    axes.set_xlabel("layer after which one row is replaced")
    axes.set_ylabel("row that is replaced")
    bar = figure.colorbar(image, ax=axes, aspect=12)
    for value, name in zip(unpatched, ("first", "second"), strict=True):
        bar.ax.axhline(value, color="black", linewidth=1.5)
        bar.ax.text(-0.3, value, f"{name} run", ha="right", va="center", fontsize=8)
    bar.set_ticks([-limit, 0, limit])
    bar.set_ticklabels([f"{-limit:g}: {first}", "0: a tie", f"+{limit:g}: {second}"])
    return figure


def ablation(change: Any, layer: int, head: int) -> Figure:
    """The change of a probability, [L N], when one head is switched off; a ring marks one of them."""
    change = np.asarray(change)
    limit = float(np.ceil(10 * np.abs(change).max()) / 10)
    figure, axes = plt.subplots(figsize=(9.5, 3.3))
    image = heat_map(axes, change.T, cmap="RdBu", vmin=-limit, vmax=limit)
    marked = range(0, len(change), 5)
    axes.set_xticks(marked, list(map(str, marked)), rotation=0, ha="center")
    heads = range(change.shape[1])
    axes.set_yticks(heads, list(map(str, heads)))
    axes.set_xlabel("layer")
    axes.set_ylabel("head switched off")
    _ring(axes, layer, head)
    figure.colorbar(image, ax=axes, label="change of the probability")
    return figure


def _ring(axes: Axes, x: int, y: int) -> None:
    corner = (x - 0.5, y - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#d9772b", linewidth=2))
