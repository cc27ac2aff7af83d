"""Pictures: shown with words for those who do not see them, and the kinds that several lessons draw."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

_DPI = 150
matplotlib.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "figure.dpi": 100,
        "image.interpolation": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def show(figure: Figure, en: str, zh: str) -> None:
    """Show a figure with alt texts in both languages, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    plt.close(figure)
    width = round(figure.get_figwidth() * 100)  # in the page's pixels, whatever the resolution
    words = {"alt": en, "alt_zh": zh, "width": width}
    display(Image(buffer.getvalue(), format="png", alt=en, metadata=words))


def bars(values: Any, labels: Sequence[str], what: str, axes: Axes | None = None) -> Figure:
    """Horizontal bars from the first value at the top to the last, with what they measure below."""
    if axes is None:
        _, axes = plt.subplots(figsize=(6, 0.6 + 0.4 * len(labels)))
    axes.barh(range(len(labels)), np.asarray(values))
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(what)
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def plain_logarithms(axes: Axes) -> None:
    """A logarithmic y axis of few decades, whose ticks are 1, 2, 5, 10 and not 2×10⁰."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def heat_map(
    axes: Axes,
    matrix: Any,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    numbers: str | None = None,
    **options: Any,
) -> Any:
    """A matrix as coloured cells with names at its rows and columns; the image, for a colour bar.

    `numbers` is a format, such as ".2f", in which each number is written into its cell. Cells that
    are not finite stay white.
    """
    matrix = np.ma.masked_invalid(np.asarray(matrix, np.float64))
    image = axes.imshow(matrix, aspect="auto", **options)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    if numbers is not None:
        for (row, column), value in np.ndenumerate(matrix.filled(np.nan)):
            if np.isfinite(value):
                brightness = np.dot(image.to_rgba(value)[:3], [0.299, 0.587, 0.114])
                colour = "black" if brightness > 0.5 else "white"
                axes.text(
                    column, row, format(value, numbers), ha="center", va="center", color=colour
                )
    return image
