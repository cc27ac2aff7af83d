"""Pictures of lesson 03: ids to rows, neighbours in the embedding, and what a norm does to lengths."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..drawings import BLUE, ORANGE, arrow, box, canvas
from ..pictures import bars


def ids_to_rows(
    tokens: Sequence[str], ids: Sequence[int], embedding: Any, shown: int = 16
) -> Figure:
    """Each token, its id, and the first numbers of the row of the embedding with that id."""
    height = 1.6 * len(ids)
    figure, axes = canvas(24, height + 1.6, 0.36)
    rows = np.asarray(embedding)[np.asarray(ids)][:, :shown]
    limit = float(np.abs(rows).max())
    for place, (token, number) in enumerate(zip(tokens, ids, strict=True)):
        y = height - 1.6 * place - 1.2
        box(axes, 0.1, y, 3.5, 1.2, repr(token), ORANGE)
        arrow(axes, (3.6, y + 0.6), (5, y + 0.6))
        box(axes, 5, y, 2.8, 1.2, str(number), BLUE)
        arrow(axes, (7.8, y + 0.6), (9.4, y + 0.6))
        axes.imshow(
            rows[place : place + 1],
            extent=(9.4, 22, y, y + 1.2),
            cmap="RdBu",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
        )
        axes.text(22.4, y + 0.6, "...", va="center", fontsize=11)
    axes.set_xlim(0, 24)
    axes.set_ylim(0, height + 1.6)
    width = np.shape(embedding)[1]
    heads = {
        1.8: "token",
        6.4: "id",
        15.7: f"its row of E: the first {shown} of {width} numbers",
    }
    for x, text in heads.items():
        axes.text(x, height + 0.7, text, ha="center", va="center", fontsize=9)
    return figure


def neighbours(
    names: Sequence[str], cosines: Any, beside: Sequence[str], others: Any, typical: float
) -> Figure:
    """Bars of cosines: of the nearest rows of the embedding, and of the rows with neighbouring ids.

    A dashed line shows the cosine of a typical row.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8, 0.9 + 0.32 * len(names)), sharex=True)
    for panel, labels, values, title in (
        (panels[0], names, cosines, "nearest rows"),
        (panels[1], beside, others, "rows with neighbouring ids"),
    ):
        bars(values, [repr(label) for label in labels], "cosine", panel)
        panel.set_title(title, fontsize=10)
        panel.axvline(typical, color="#333333", linewidth=1, linestyle="--", label="a typical row")
    line = panels[0].lines[0]
    figure.legend(handles=[line], loc="outside lower center", fontsize=9, frameon=False)
    panels[0].set_xlim(min(0.0, float(np.min(others))), 1)
    return figure


def growth(tokens: Sequence[str], sizes: Any) -> Figure:
    """The root mean square of each token's vector before the first layer and after each one."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for token, line in zip(tokens, np.asarray(sizes).T, strict=True):
        axes.plot(line, label=repr(token))
    axes.set_yscale("log")
    axes.set_xlabel("layers done")
    axes.set_ylabel("root mean square of x")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def before_and_after(tokens: Sequence[str], before: Any, after: Any) -> Figure:
    """The root mean square of each token's vector, before a norm and after it."""
    figure, axes = plt.subplots(figsize=(7, 3))
    positions = np.arange(len(tokens))
    axes.bar(positions - 0.2, before, 0.4, label="x")
    axes.bar(positions + 0.2, after, 0.4, label="RMSNorm(x), w = 1")
    axes.set_xticks(positions, [repr(token) for token in tokens])
    axes.set_ylabel("root mean square")
    axes.set_ylim(0, 1.4)
    axes.legend(ncols=2, loc="upper center", frameon=False)
    return figure
