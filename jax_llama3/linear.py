"""The matrix product, in the one form that every backend runs at its memory bandwidth.

The contracted axes stand last in both operands. XLA's CPU backend runs bfloat16 fast only if both
operands are bfloat16, the result is float32 and there are at least two rows: one row alone makes it
convert the whole weight to float32 on every call, ten times slower.

An int8 weight is widened on its way into the product. XLA's CPU backend would write the whole wide
copy to memory first, so there it is widened block by block, each block small enough for the cache.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Int8

from .quantization import Quantized

_CPU_ROWS = 2
_CPU_BLOCK_BYTES = 2 << 20  # of an int8 weight, widened to float32


def linear(
    spec: str, x: Float[Array, "..."], weight: Float[Array, "..."] | Quantized, dtype: Any = None
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
    shape = x.shape[: len(batch)] + weight.shape[: len(out)]
    x = x.reshape(-1, math.prod(x.shape[len(batch) :]))
    product = _quantized(x, weight) if isinstance(weight, Quantized) else _full(x, weight)
    return product.reshape(shape).astype(dtype)


def _full(x: Float[Array, "M C"], weight: Float[Array, "..."]) -> Float[Array, "M O"]:
    weight = weight.reshape(-1, x.shape[1])
    if x.dtype != weight.dtype:  # a checkpoint may mix them; float32 holds every one exactly
        x, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
    return lax.platform_dependent(x, weight, cpu=_product_cpu, default=_product)


def _quantized(x: Float[Array, "M C"], weight: Quantized) -> Float[Array, "M O"]:
    values = weight.values.reshape(-1, x.shape[1])
    sums = lax.platform_dependent(x, values, cpu=_sums_cpu, default=_sums)
    return sums * weight.scale.reshape(1, -1)


def _product(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    # HIGHEST keeps a GPU from rounding float32 operands to TF32; narrower operands ignore it.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, axes, precision=precision, preferred_element_type=jnp.float32)


def _product_cpu(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    rows = x.shape[0]
    if x.dtype == jnp.bfloat16 and rows < _CPU_ROWS:
        x = jnp.pad(x, ((0, _CPU_ROWS - rows), (0, 0)))
    return _product(x, weight)[:rows]


def _sums(x: Float[Array, "M C"], values: Int8[Array, "O C"]) -> Float[Array, "M O"]:
    # Every float dtype holds int8 exactly. A GPU widens it inside the product.
    return _product(x, values.astype(x.dtype))


def _sums_cpu(x: Float[Array, "M C"], values: Int8[Array, "O C"]) -> Float[Array, "M O"]:
    # The head of Llama 3.2 1B, one row: 27 ms and 4 MB; widened whole it takes 450 ms and 1 GB. In
    # blocks of bfloat16 it takes 400 ms: int8 is widened fast to float32 alone.
    height, width = values.shape
    x = x.astype(jnp.float32)
    # At least two: what stands in no loop XLA widens for all layers at once, ahead of their use.
    step = min(max(_CPU_BLOCK_BYTES // (4 * width), 1), -(-height // 2))

    def block(index: Int[Array, ""], sums: Float[Array, "M O"]) -> Float[Array, "M O"]:
        start = jnp.minimum(index * step, height - step)  # the last block may overlap another
        rows = lax.dynamic_slice_in_dim(values, start, step)
        return lax.dynamic_update_slice_in_dim(sums, _sums(x, rows), start, axis=1)

    return lax.fori_loop(0, -(-height // step), block, jnp.zeros((x.shape[0], height), jnp.float32))
