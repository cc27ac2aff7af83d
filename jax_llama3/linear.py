"""The matrix product, in the one form that every backend runs near its memory bandwidth.

The contracted axes stand last in both operands. XLA's CPU backend runs a bfloat16 product fast only if
both operands are bfloat16, the result is float32 and there are at least two rows: for one it would
widen the whole weight on every call. One row is a fused sum there, or a kernel where numba is installed.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .row_kernel import has_row_kernel, row_product

_KERNEL_ROWS = 3  # more are faster as a product


def linear(
    spec: str, x: Float[Array, "..."], weight: Float[Array, "..."], dtype: Any = None
) -> Float[Array, "..."]:
    """`jnp.einsum(spec, x, weight)` for a weight whose contracted axes stand last in both operands.

    Sums in float32 and returns `dtype` (default: x's), for example `linear("BTD,NHD->BTNH", x, wq)`.
    """
    operands, result = spec.split("->")
    left, right = operands.split(",")
    contracted = "".join(letter for letter in right if letter not in result)
    batch, out = left.removesuffix(contracted), right.removesuffix(contracted)
    if not contracted or (batch + contracted, batch + out) != (left, result):
        raise ValueError(f"{spec!r} does not contract the last axes of both operands")
    dtype = dtype or x.dtype
    width = math.prod(x.shape[len(batch) :])
    if x.dtype != weight.dtype:  # a checkpoint may mix them; float32 holds every one exactly
        x, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
    flat_x, flat_weight = x.reshape(-1, width), weight.reshape(-1, width)
    product = lax.platform_dependent(flat_x, flat_weight, cpu=_product_cpu, default=_product)
    shape = x.shape[: len(batch)] + weight.shape[: len(out)]
    return product.reshape(shape).astype(dtype)


def _product(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    # HIGHEST keeps a GPU from rounding float32 operands to TF32; narrower operands ignore it.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, axes, precision=precision, preferred_element_type=jnp.float32)


def _product_cpu(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    narrow = weight.dtype.itemsize < 4
    if narrow and x.shape[0] <= _KERNEL_ROWS and has_row_kernel(weight.dtype):
        return row_product(x.astype(jnp.float32), weight)
    return _row_cpu(x, weight) if narrow and x.shape[0] == 1 else _product(x, weight)


def _row_cpu(x: Float[Array, "1 C"], weight: Float[Array, "O C"]) -> Float[Array, "1 O"]:
    # A sum widens the weights as it reads them. The barriers keep XLA from computing x anew for every
    # row of the weight and the sum wherever it is read, and from widening all weights before a loop.
    x, weight = lax.optimization_barrier((x.astype(jnp.float32), weight))
    return lax.optimization_barrier(jnp.sum(weight.astype(jnp.float32) * x, axis=-1))[None]
