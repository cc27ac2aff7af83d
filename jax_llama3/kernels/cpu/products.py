"""XLA's products in the forms that its CPU backend runs near the memory's bandwidth.

It runs a bfloat16 product fast only if both operands are bfloat16, the result is float32 and there are
at least two rows. For a single row a fused sum is faster.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Int8

from ...model.linear import Weight, dot, in_one_dtype
from ...model.quantization import Quantized

_SOME_ROWS, _LONG_ROWS = 64, 1536  # where XLA's product is faster with its operands exchanged
_BLOCK_BYTES = 2 << 20  # of an int8 weight, widened to float32


def xla_products(x: Float[Array, "M C"], weights: tuple[Weight, ...]) -> tuple[Array, ...]:
    """x times each weight [O C] over C, summed in float32."""
    return tuple(_product(x, weight) for weight in weights)


def _product(x: Float[Array, "M C"], weight: Weight) -> Float[Array, "M O"]:
    if isinstance(weight, Quantized):
        return sums_by_block(x, weight.values) * weight.scale[None]
    if x.shape[0] == 1 and weight.dtype.itemsize < 4:
        return _fused_sum(x, weight)
    return _dot(*in_one_dtype(x, weight))


def _dot(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    if x.shape[0] > _SOME_ROWS or x.shape[1] < _LONG_ROWS:
        return dot(x, weight)
    # XLA repacks the second operand, which for few rows takes longer than to multiply, so that is x;
    # short rows gain less than the result's transpose costs. Without the barrier XLA exchanges them.
    return lax.optimization_barrier(dot(weight, x)).T


def _fused_sum(x: Float[Array, "1 C"], weight: Float[Array, "O C"]) -> Float[Array, "1 O"]:
    # A sum widens the weights as it reads them. The barriers keep XLA from computing x anew for every
    # row of the weight and the sum wherever it is read, and from widening all weights before a loop.
    x, weight = lax.optimization_barrier((x.astype(jnp.float32), weight))
    return lax.optimization_barrier(jnp.sum(weight.astype(jnp.float32) * x, axis=-1))[None]


def sums_by_block(x: Float[Array, "M C"], values: Int8[Array, "O C"]) -> Float[Array, "M O"]:
    """x times int8 values, which are widened to float32 block by block, each of which fits the cache.

    The head of Llama 3.2 1B, one row: 27 ms and 4 MB; widened whole 450 ms and 1 GB; in blocks of
    bfloat16 400 ms, because XLA widens fast to float32 alone.
    """
    height, width = values.shape
    x = x.astype(jnp.float32)
    # At least two blocks: what XLA finds in no loop it widens for all layers at once, before any use.
    step = min(max(_BLOCK_BYTES // (4 * width), 1), -(-height // 2))

    def block(index: Int[Array, ""], sums: Float[Array, "M O"]) -> Float[Array, "M O"]:
        start = jnp.minimum(index * step, height - step)  # the last block may overlap another
        rows = lax.dynamic_slice_in_dim(values, start, step).astype(jnp.float32)
        return lax.dynamic_update_slice_in_dim(sums, _dot(x, rows), start, axis=1)

    # Made from both, so that the sums vary by device in `shard_map` where either does.
    zeros = jnp.zeros_like(x, shape=(x.shape[0], height))
    zeros += jnp.zeros_like(values, dtype=jnp.float32, shape=(1, 1))
    return lax.fori_loop(0, -(-height // step), block, zeros)
