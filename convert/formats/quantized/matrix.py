"""A quantised matrix: what it is stored as, and how its rows are read; the words of what is refused."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ...source import TensorInfo
from .stored import Part

Tensors = dict[str, TensorInfo]
_REMEDY = (
    "save it dequantised with its own library, or take the repository that it was quantised from"
)


class Matrix(NamedTuple):
    """A matrix (out, in) that is made of stored tensors.

    `rows(part, start, stop)` are its rows in `dtype`, which is what the format's own library makes of
    them, rounded where that one rounds.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    parts: tuple[str, ...]
    rows: Callable[[Part, int, int], np.ndarray]


class Found(NamedTuple):
    """What a method makes of a repository's tensors."""

    what: str  # how they are quantised, for the user
    matrices: list[Matrix]
    without_effect: tuple[str, ...] = ()  # endings of names of tensors that change no weight


def unsupported(what: str, allowed: str) -> ValueError:
    """The refusal of a method, a number of bits or a layout that is not read."""
    return ValueError(f"{what} is not supported, only {allowed}; {_REMEDY}")


def check_keys(values: dict, known: Iterable[str], where: str) -> None:
    """Refuse keys that are not known; they could change the numbers."""
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{where} has unknown keys {', '.join(unknown)}; "
            "what they mean is not supported; delete those that change nothing"
        )


def integer(values: dict, key: str, default: int | None = None) -> int:
    """A whole number of the config; another value raises ValueError."""
    value = values.get(key, default)
    if type(value) is not int:
        raise ValueError(f"quantization_config: {key} {value!r} is no whole number")
    return value


def flag(values: dict, key: str, default: bool) -> bool:
    """A truth value of the config, null meaning the default; another value raises ValueError."""
    value = values.get(key)
    if value is None:
        return default
    if type(value) is not bool:
        raise ValueError(f"quantization_config: {key} {value!r} is neither true nor false")
    return value


def modules_with(tensors: Tensors, ending: str) -> list[str]:
    """The names of the modules that have a tensor of this name, such as `qweight`."""
    return sorted(n.removesuffix("." + ending) for n in tensors if n.endswith("." + ending))


def expect(
    tensors: Tensors, name: str, dtypes: Iterable[str], *shapes: tuple[int, ...]
) -> TensorInfo:
    """A tensor that must be there, in one of these dtypes and, if any are given, of these shapes."""
    info = tensors.get(name)
    if info is None:
        raise ValueError(
            f"{name} is missing; the weight is quantised and cannot be read without it"
        )
    if info.dtype not in dtypes:
        raise ValueError(f"{name} is {info.dtype}, not {' or '.join(dtypes)}")
    if not math.prod(info.shape):
        raise ValueError(f"{name} has shape {list(info.shape)}, which is empty")
    if shapes and info.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name} has shape {list(info.shape)}, not {wanted}")
    return info


def expect_matrix(tensors: Tensors, name: str, dtypes: Iterable[str]) -> tuple[int, int]:
    """The shape of a tensor that must be there, in one of these dtypes and with two axes."""
    shape = expect(tensors, name, dtypes).shape
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {list(shape)}; a matrix was expected")
    return shape[0], shape[1]


def collect(modules: Iterable[str], make: Callable[[str], Any]) -> tuple[list[Any], list[str]]:
    """What `make` makes of each module, and the words of what it refuses."""
    made, errors = [], []
    for module in modules:
        try:
            made.append(make(module))
        except ValueError as error:
            errors.append(str(error))
    return made, errors
