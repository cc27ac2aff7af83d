"""The matrix product, in the forms that every backend runs near its memory bandwidth.

The contracted axes stand last in both operands. XLA's CPU backend runs a bfloat16 product fast only if
both operands are bfloat16, the result is float32 and there are at least two rows. For fewer rows a
fused sum is faster, and where numba is installed there is a kernel for few rows and one for many.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Int8

from ..kernels.cpu.gemm import has_matrix_kernel, matrix_products
from ..kernels.cpu.gemv import has_row_kernel, row_products
from .quantization import Quantized

Weight = Float[Array, "..."] | Quantized

_FEW_ROWS = 3  # more are faster as a product
_SOME_ROWS, _LONG_ROWS = 64, 1536  # where XLA's product is faster with its operands exchanged
_BLOCK_BYTES = 2 << 20  # of an int8 weight, widened to float32


def linear(
    spec: str,
    x: Float[Array, "..."],
    weight: Weight,
    dtype: Any = None,
    *,
    kernel: bool = True,
) -> Float[Array, "..."]:
    """`jnp.einsum(spec, x, weight)` for a weight whose contracted axes stand last in both operands.

    Sums in float32 and returns `dtype` (default: x's), for example `linear("BTD,NHD->BTNH", x, wq)`.
    Without `kernel` numba is not imported for it.
    """
    return linears(x, [(spec, weight)], dtype, kernel=kernel)[0]


def linears(
    x: Float[Array, "..."],
    weights: Sequence[tuple[str, Weight]],
    dtype: Any = None,
    *,
    kernel: bool = True,
) -> list[Float[Array, "..."]]:
    """`linear` of one x with several weights, as one operation where that is faster."""
    axes = [_split(spec) for spec, _ in weights]
    batch, contracted = axes[0][0], x.shape[axes[0][0] :]
    width = math.prod(contracted)
    flat = tuple(_flatten(weight, width) for _, weight in weights)
    products = lax.platform_dependent(
        x.reshape(-1, width), flat, cpu=partial(_products_cpu, kernel), default=_products
    )
    return [
        product.reshape(x.shape[:batch] + weight.shape[:out]).astype(dtype or x.dtype)
        for product, (_, weight), (_, out) in zip(products, weights, axes, strict=True)
    ]


def _split(spec: str) -> tuple[int, int]:
    """How many axes of x, and how many of the weight, are not contracted."""
    operands, result = spec.split("->")
    left, right = operands.split(",")
    contracted = "".join(letter for letter in right if letter not in result)
    batch, out = left.removesuffix(contracted), right.removesuffix(contracted)
    if not contracted or (batch + contracted, batch + out) != (left, result):
        raise ValueError(f"{spec!r} does not contract the last axes of both operands")
    return len(batch), len(out)


def _flatten(weight: Weight, width: int) -> Weight:
    if isinstance(weight, Quantized):
        return Quantized(weight.values.reshape(-1, width), weight.scale.reshape(-1))
    return weight.reshape(-1, width)


def _products(x: Float[Array, "M C"], weights: tuple[Weight, ...]) -> tuple[Array, ...]:
    return tuple(_product(x, weight) for weight in weights)


def _product(x: Float[Array, "M C"], weight: Weight) -> Float[Array, "M O"]:
    if isinstance(weight, Quantized):
        # Every float dtype holds int8 exactly. A GPU widens it inside the product.
        return _dot(x, weight.values.astype(x.dtype)) * weight.scale[None]
    return _dot(*_alike(x, weight))


def _alike(x: Array, weight: Array) -> tuple[Array, Array]:
    """A checkpoint may mix dtypes; float32 holds every one exactly."""
    if x.dtype == weight.dtype:
        return x, weight
    return x.astype(jnp.float32), weight.astype(jnp.float32)


def _dot(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    # HIGHEST keeps a GPU from rounding float32 operands to TF32; narrower operands ignore it.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, axes, precision=precision, preferred_element_type=jnp.float32)


def _products_cpu(
    kernel: bool, x: Float[Array, "M C"], weights: tuple[Weight, ...]
) -> tuple[Array, ...]:
    stored = tuple(each.values if isinstance(each, Quantized) else each for each in weights)
    if kernel and has_matrix_kernel(x, stored):
        sums = matrix_products(x, stored)
    elif kernel and x.shape[0] <= _FEW_ROWS and _all_have_row_kernel(x, stored):
        sums = row_products(x.astype(jnp.float32), stored)
    else:
        return tuple(_product_cpu(x, weight) for weight in weights)
    return tuple(
        each * weight.scale[None] if isinstance(weight, Quantized) else each
        for each, weight in zip(sums, weights, strict=True)
    )


def _all_have_row_kernel(x: Array, stored: tuple[Array, ...]) -> bool:
    return all(has_row_kernel(each.dtype, x.shape[1]) for each in stored)


def _product_cpu(x: Float[Array, "M C"], weight: Weight) -> Float[Array, "M O"]:
    if isinstance(weight, Quantized):
        return _sums_by_block(x, weight.values) * weight.scale[None]
    if x.shape[0] == 1 and weight.dtype.itemsize < 4:
        return _fused_sum(x, weight)
    return _dot_cpu(*_alike(x, weight))


def _dot_cpu(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    if x.shape[0] > _SOME_ROWS or x.shape[1] < _LONG_ROWS:
        return _dot(x, weight)
    # XLA repacks the second operand, which for few rows takes longer than to multiply, so that is x;
    # short rows gain less than the result's transpose costs. Without the barrier XLA exchanges them.
    return lax.optimization_barrier(_dot(weight, x)).T


def _fused_sum(x: Float[Array, "1 C"], weight: Float[Array, "O C"]) -> Float[Array, "1 O"]:
    # A sum widens the weights as it reads them. The barriers keep XLA from computing x anew for every
    # row of the weight and the sum wherever it is read, and from widening all weights before a loop.
    x, weight = lax.optimization_barrier((x.astype(jnp.float32), weight))
    return lax.optimization_barrier(jnp.sum(weight.astype(jnp.float32) * x, axis=-1))[None]


def _sums_by_block(x: Float[Array, "M C"], values: Int8[Array, "O C"]) -> Float[Array, "M O"]:
    # Each block, once widened, fits the cache. The head of Llama 3.2 1B, one row: 27 ms and 4 MB;
    # widened whole 450 ms and 1 GB; in blocks of bfloat16 400 ms: only to float32 is widening fast.
    height, width = values.shape
    x = x.astype(jnp.float32)
    # At least two: what stands in no loop XLA widens for all layers at once, ahead of their use.
    step = min(max(_BLOCK_BYTES // (4 * width), 1), -(-height // 2))

    def block(index: Int[Array, ""], sums: Float[Array, "M O"]) -> Float[Array, "M O"]:
        start = jnp.minimum(index * step, height - step)  # the last block may overlap another
        rows = lax.dynamic_slice_in_dim(values, start, step).astype(jnp.float32)
        return lax.dynamic_update_slice_in_dim(sums, _dot_cpu(x, rows), start, axis=1)

    # Made from both, so that the sums vary by device in `shard_map` where either does.
    zeros = jnp.zeros_like(x, shape=(x.shape[0], height))
    zeros += jnp.zeros_like(values, dtype=jnp.float32, shape=(1, 1))
    return lax.fori_loop(0, -(-height // step), block, zeros)
