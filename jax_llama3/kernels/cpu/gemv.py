"""A few rows times weights on a CPU, at the speed of its memory: an optional kernel.

XLA's own best form reads a bfloat16 weight at about 0.6 of the machine's bandwidth, because it widens
blocks of it in one pass and multiplies them in another. This kernel widens in registers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from .calls import product_types, with_product_derivatives
from .registration import GEMV

_DTYPES = ("bfloat16", "int8", "float32")


def serves_gemv(x: Any, weights: Sequence[Any]) -> bool:
    """Whether the kernel takes weights [O C] of these dtypes and of the width of x [M C]."""
    return x.shape[1] % 2 == 0 and all(jnp.dtype(each.dtype).name in _DTYPES for each in weights)


@with_product_derivatives
def gemv(
    x: Float[Array, "M C"], weights: tuple[Num[Array, "_ C"], ...]
) -> tuple[Float[Array, "M _"], ...]:
    """x times each weight [O C] over C, in float32; x is float32, the weights any of the dtypes."""
    types = product_types(x, weights)
    return tuple(jax.ffi.ffi_call(GEMV, types, vmap_method="sequential")(x, *weights))
