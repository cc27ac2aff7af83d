"""What every lesson uses: a model, dimension traces, pictures, exercises."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from IPython.display import Image, display
from matplotlib.figure import Figure

import jax_llama3
from jax_llama3 import Model
from jax_llama3.runtime.home import default_folder

_DEFAULT_MODEL = "smollm2-135m-instruct"
_DPI = 100
# On a GPU a float32 product would be rounded to fewer bits than the asserts allow.
jax.config.update("jax_default_matmul_precision", "highest")
matplotlib.rcParams.update({"figure.constrained_layout.use": True, "image.interpolation": "none"})


def model_folder() -> Path:
    """The default model's folder, or the converted model that LESSON_MODEL names."""
    return Path(os.environ.get("LESSON_MODEL") or default_folder(_DEFAULT_MODEL))


def load_model() -> Model:
    """The model of the lessons in float32."""
    return jax_llama3.load(model_folder(), dtype="float32")


def trace(name: str, array: Any, letters: str, **sizes: int) -> Any:
    """Assert that an array has the sizes that its letters stand for, print them, return it.

    trace("q", q, "T N H", T=5, N=9, H=64) prints: q  [T N H] = [5 9 64]  float32
    """
    expected = tuple(
        sizes[letter] if letter in sizes else int(letter) for letter in letters.split()
    )
    assert np.shape(array) == expected, f"{name} is {np.shape(array)}, not {letters} = {expected}"
    shown = " ".join(map(str, expected))
    print(f"{name:<12} [{letters}] = [{shown}]  {jnp.asarray(array).dtype}")
    return array


def close(ours: Any, theirs: Any, atol: float = 1e-4) -> None:
    """Assert that two arrays agree to an absolute tolerance; print the bound, not the noise."""
    assert np.shape(ours) == np.shape(theirs), f"{np.shape(ours)} is not {np.shape(theirs)}"
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max()
    assert difference <= atol, f"they differ by {difference:.3g}, more than {atol:g}"
    print(f"equal to {atol:g} in all {np.size(ours):,} numbers")


def show(figure: Figure, en: str, zh: str) -> None:
    """Show a figure with alt texts in both languages, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    matplotlib.pyplot.close(figure)
    display(Image(buffer.getvalue(), format="png", alt=en, metadata={"alt": en, "alt_zh": zh}))


def exercise(number: int, answer: Any, check: Callable[[Any], None]) -> None:
    """Check an answer; one of None has not been given yet."""
    if answer is None:
        print(f"exercise {number}: not answered yet")
        return
    check(answer)
    print(f"exercise {number}: right")
