"""The matrix product, in the one form that every backend runs at its memory bandwidth.

The contracted axes stand last in both operands. XLA's CPU backend runs bfloat16 fast only if both
operands are bfloat16, the result is float32 and there are at least two rows: one row alone makes it
convert the whole weight to float32 on every call, ten times slower.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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
    if x.shape[0] == 1 and weight.dtype.itemsize < 4:
        return _row_cpu(x, weight)
    return _product(x, weight)


def _row_cpu(x: Float[Array, "1 C"], weight: Float[Array, "O C"]) -> Float[Array, "1 O"]:
    # A sum widens the weights as it reads them. The barriers keep XLA from computing x anew for every
    # row of the weight and the sum wherever it is read, and from widening all weights before a loop.
    x, weight = lax.optimization_barrier((x.astype(jnp.float32), weight))
    return lax.optimization_barrier(jnp.sum(weight.astype(jnp.float32) * x, axis=-1))[None]
