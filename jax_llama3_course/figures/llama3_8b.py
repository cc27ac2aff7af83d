"""Pictures of lesson 15: rounded logits, and where the parameters are."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def ties(exact: Sequence[float], rounded: Sequence[float], labels: Sequence[str]) -> Figure:
    """Logits of the best tokens, and the levels that rounding moves them to."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    place = np.arange(len(labels))
    axes.plot(place, exact, "o", label="float32")
    axes.plot(place, rounded, "_", markersize=22, markeredgewidth=2, label="rounded to bfloat16")
    axes.set_xticks(place, labels)
    axes.set_xlabel("token")
    axes.set_ylabel("logit")
    axes.legend()
    return figure


def shares(models: Sequence[str], parts: dict[str, Sequence[int]]) -> Figure:
    """Each model's parameters, part by part, as a bar of length one."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.55 * len(models)))
    whole = np.sum(list(parts.values()), axis=0)
    left = np.zeros(len(models))
    for name, numbers in parts.items():
        width = np.array(numbers) / whole
        axes.barh(models, width, left=left, label=name)
        left += width
    axes.invert_yaxis()
    axes.set_xlabel("share of the parameters")
    figure.legend(loc="outside upper center", ncols=len(parts), frameon=False)
    return figure
