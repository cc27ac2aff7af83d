"""A row times weights on a CPU, at memory speed: an optional kernel.

XLA's own best form reads a bfloat16 weight at about 0.6 of the machine's bandwidth, because it widens
blocks of it in one pass and multiplies them in another. This kernel widens in registers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from .registration import ROW_PRODUCTS, differentiable, has_kernels, product_types

_DTYPES = ("bfloat16", "int8", "float32")


def has_row_kernel(dtype: Any, width: int) -> bool:
    """Whether the kernel can be had and takes weights of this dtype and width."""
    return jnp.dtype(dtype).name in _DTYPES and width % 2 == 0 and has_kernels()


@differentiable
def row_products(
    x: Float[Array, "M C"], weights: tuple[Num[Array, "_ C"], ...]
) -> tuple[Float[Array, "M _"], ...]:
    """x times each weight [O C] over C, in float32; x is float32, the weights any of the dtypes."""
    types = product_types(x, weights)
    return tuple(jax.ffi.ffi_call(ROW_PRODUCTS, types, vmap_method="sequential")(x, *weights))
