"""Pictures of lesson 17: surprise token by token, layers switched off, a loss that falls."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..pictures import plain_logarithms


def surprise(tokens: Sequence[str], nats: Sequence[float]) -> Figure:
    """A bar for every token of a text: how little the model expected it."""
    figure, axes = plt.subplots(figsize=(7.5, 3))
    place = np.arange(len(tokens))
    axes.bar(place, nats)
    axes.axhline(float(np.mean(nats)), color="tab:orange", label="mean: the loss")
    axes.set_xticks(place, tokens, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylabel("-log p, nats")
    axes.legend(loc="upper right")
    return figure


def switched_off(feed_forward: Sequence[float], attention: Sequence[float]) -> Figure:
    """By how much the loss rises when one layer's part is switched off."""
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    place = np.arange(len(feed_forward))
    axes.bar(place - 0.2, feed_forward, 0.4, label="feed-forward part off")
    axes.bar(place + 0.2, attention, 0.4, label="attention off")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("layer")
    axes.set_ylabel("rise of the loss, nats")
    axes.legend(loc="upper right")
    return figure


def falling(losses: Sequence[float]) -> Figure:
    """The loss of the paragraph before every step."""
    figure, axes = plt.subplots(figsize=(6, 2.8))
    axes.plot(range(len(losses)), losses, "o-", markersize=4)
    plain_logarithms(axes)
    axes.set_xlabel("steps taken")
    axes.set_ylabel("loss, nats")
    return figure


def before_and_after(
    names: Sequence[str], before: Sequence[float], after: Sequence[float]
) -> Figure:
    """The loss of several texts before the fine-tuning and after it."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.6 * len(names)))
    place = np.arange(len(names))
    axes.barh(place - 0.2, before, 0.4, label="before")
    axes.barh(place + 0.2, after, 0.4, label="after")
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    axes.set_xlabel("loss, nats per token")
    axes.legend(loc="lower right")
    return figure
