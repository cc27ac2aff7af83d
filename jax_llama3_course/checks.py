"""Checks that print what they have checked: shapes, equality, known numbers, answers."""

import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .model import OTHER_MODEL


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
    """Assert that two arrays have one shape, and that no two numbers in them differ by more than `atol`.

    Two ways to the same result round differently, so their numbers are rarely equal to the last bit.
    What is printed is the bound, which is the same on every machine, and not the difference.
    """
    assert np.shape(ours) == np.shape(theirs), f"{np.shape(ours)} is not {np.shape(theirs)}"
    difference = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max()
    assert difference <= atol, f"they differ by {difference:.3g}, more than {atol:g}"
    count = np.size(ours)
    what = f"all {count:,} numbers agree" if count > 1 else "the number agrees"
    print(f"✓ {what}" + (f" to within {atol:g}" if atol else ", bit for bit"))


def on_default_model() -> bool:
    """Whether the lesson looks into the model that it was written on: $LESSON_MODEL names no other."""
    return not os.environ.get(OTHER_MODEL)


def expect(actual: Any, known: Any) -> None:
    """Assert that something is what it is known to be on the default model; another may differ."""
    if on_default_model():
        assert actual == known, f"{actual!r} is not {known!r}, which it is on the default model"


def exercise(number: int, answer: Any, check: Callable[[Any], None]) -> None:
    """Check an answer; one of None has not been given yet."""
    if answer is None:
        print(f"exercise {number}: not answered yet")
        return
    check(answer)
    print(f"✓ exercise {number}")
