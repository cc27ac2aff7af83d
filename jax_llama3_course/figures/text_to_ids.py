"""The pictures of lesson 01: how merges build a word, and how many bytes a token stands for."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..drawings import BLUE, GREEN, GREY, box, canvas

_INK = "#333333"
_WIDTH, _LINE = 1.7, 1.15  # of one byte's column and of one merge, in units of the canvas


class _Node(NamedTuple):
    """A token in the tree: its bytes, the first of them in the piece, and where its middle is drawn."""

    part: bytes
    first: int
    x: float
    y: float


def merge_tree(history: Sequence[Sequence[bytes]], ranks: Mapping[bytes, int]) -> Figure:
    """The merges of one piece from its bytes upwards, one line a merge; what is left is green.

    `history` holds the parts before the first merge and after each.
    """
    right = _WIDTH * len(history[0]) + 0.4
    figure, axes = canvas(right + 1.8, _LINE * len(history) + 0.3, inches=0.4)
    nodes = [_node(part, place, 0) for place, part in enumerate(history[0])]
    leaves, merged = [*nodes], []
    axes.text(right, nodes[0].y, "bytes", fontsize=8, va="center", color=_INK)
    for step, (before, after) in enumerate(pairwise(history), 1):
        place = next(i for i, part in enumerate(after) if part != before[i])
        made = _node(after[place], nodes[place].first, step)
        for child in nodes[place : place + 2]:
            line = [child.x, child.x, made.x], [child.y + 0.38, made.y, made.y]
            axes.plot(*line, color=_INK, linewidth=1, zorder=0.5)
        axes.text(right, made.y, f"merge {step}", fontsize=8, va="center", color=_INK)
        nodes[place : place + 2] = [made]
        merged.append(made)
    for node in [*leaves, *merged]:
        colour = GREEN if node in nodes else BLUE if node in merged else GREY
        _draw(axes, node, ranks, colour)
    return figure


def _node(part: bytes, first: int, step: int) -> _Node:
    return _Node(part, first, _WIDTH * (first + len(part) / 2), _LINE * step + 0.6)


def _draw(axes: Axes, node: _Node, ranks: Mapping[bytes, int], colour: str) -> None:
    """A token with its text and its rank."""
    width = _WIDTH * min(len(node.part), 2.4) - 0.2
    name = node.part.decode(errors="backslashreplace").replace(" ", "␣")
    text = f"{name}  {ranks[node.part]}"
    box(axes, node.x - width / 2, node.y - 0.38, width, 0.76, text, colour)


def bytes_per_token(texts: Sequence[str], rates: Mapping[str, Sequence[float]]) -> Figure:
    """Bars in groups, one group a text: for each vocabulary the bytes that one of its tokens holds."""
    figure, axes = plt.subplots(figsize=(6.5, 3))
    places = np.arange(len(texts))
    for k, (name, values) in enumerate(rates.items()):
        axes.bar(places + 0.4 * k - 0.2, values, 0.38, label=name)
    axes.set_xticks(places, texts)
    axes.set_ylabel("bytes per token")
    axes.set_ylim(0, 6.5)
    axes.legend(ncols=2)
    return figure
