"""Weights in another dtype, and the refusal of what is not a finite number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..runtime.memory import aligned_zeros


def cast(name: str, array: np.ndarray, dtype: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The array in another dtype, rounded to nearest even.

    `out` is the array it is written to, if it is given and the dtypes differ. NaN, infinity and a
    number too large for the dtype raise ValueError, which names the tensor.
    """
    result = array
    if array.dtype != jnp.dtype(dtype):
        wanted = jax.ShapeDtypeStruct(array.shape, jnp.dtype(dtype))
        result = aligned_zeros([wanted])[0] if out is None else out
        with np.errstate(all="ignore"):
            np.copyto(result, array, casting="unsafe")
    if not _is_finite(result):
        check_finite(name, array)
        raise ValueError(f"tensor {name} overflows {jnp.dtype(dtype)}; choose another dtype")
    return result


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise ValueError, which names the tensor, if one of its numbers is NaN or infinity."""
    if not _is_finite(array):
        raise ValueError(f"tensor {name} holds NaN or infinity; the source is damaged")


def _is_finite(array: np.ndarray) -> bool:
    if not array.size or array.dtype.kind in "iu":
        return True
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # Seen as integers, infinity and NaN are the largest numbers of each sign. So two maxima find
    # them, and no temporary array is needed.
    infinity, size = array.dtype.type(np.inf), array.dtype.itemsize
    bounds = ((f"i{size}", infinity), (f"u{size}", -infinity))
    return all(array.view(kind).max() < np.array(bound).view(kind) for kind, bound in bounds)
