"""Taps: the one way to read or to replace a named activation."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

# It takes an activation's name and value, and returns the value that the network goes on with.
Tap = Callable[[str, Array], Array]


def no_tap(name: str, array: Any) -> Any:
    """The default tap: every named activation passes through unchanged, abstract ones too."""
    return array


def is_tapped(tap: Tap) -> bool:
    """Whether a tap was given: only then must every named activation be computed."""
    return tap is not no_tap


class Named(NamedTuple):
    """A tap for a part of the network, whose names lack the prefix; equal ones are one to jit.

    What the network could not go on with, a result of another shape or dtype, raises ValueError.
    """

    tap: Tap
    prefix: str

    def __call__(self, name: str, array: Array) -> Array:
        name = self.prefix + name
        value = self.tap(name, array)
        shape, dtype = (getattr(value, field, None) for field in ("shape", "dtype"))
        if (shape, dtype) != (array.shape, array.dtype):
            is_array = None not in (shape, dtype)
            what = f"{value.dtype}{list(value.shape)}" if is_array else type(value).__name__
            raise ValueError(
                f"the tap returned {what} for {name}, which is {array.dtype}{list(array.shape)}; "
                "return an array of its shape and dtype"
            )
        return value


def within(tap: Tap, prefix: str) -> Tap:
    """The tap for a part of the network, in which the names lack the prefix.

    Without a tap it is `no_tap` itself, so that all layers stay one traced program.
    """
    return Named(tap, prefix) if is_tapped(tap) else no_tap
