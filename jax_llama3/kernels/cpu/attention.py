"""XLA's attention over a cache in the forms that its CPU backend runs fast: only what is used is read."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ...model.attention import attend, attention_pattern, causal_mask
from ...model.quantization import KV, dequantize

_SCORE_BYTES = 1 << 22  # of float32 scores at a time
_FIRST_SPAN = 256  # tokens; to read fewer gains next to nothing, and every branch is compiled


def attend_span(
    q: Float[Array, "B T N H"], k: KV, v: KV, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """Attention to the first tokens of a cache alone, up to a power of two that holds the used ones.

    There is a branch for each power of two, so that the cost is that of what is in the cache.
    """
    capacity = k.shape[1]
    spans = [_FIRST_SPAN << i for i in range((max(capacity - 1, 1) // _FIRST_SPAN).bit_length())]
    index = jnp.sum(jnp.max(positions) >= jnp.array(spans, jnp.int32))
    over = [partial(_attend_first, span=span) for span in [*spans, capacity]]
    return lax.switch(index, over, q, k, v, positions)


def _attend_first(
    q: Float[Array, "B T N H"], k: KV, v: KV, positions: Int[Array, "B T"], *, span: int
) -> Float[Array, "B T N H"]:
    k, v = jax.tree.map(lambda cached: cached[:, :span], (k, v))
    return attend_blocks(q, k, v, positions)


def attend_blocks(
    q: Float[Array, "B T N H"], k: KV, v: KV, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """Attention head by head, and block by block of queries, whose scores fit the processor's cache."""
    batch, new, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1], k.shape[2]
    row = 4 * batch * n_heads // n_kv_heads * n_keys  # bytes of one query's scores, one head of k
    if n_kv_heads * new * row <= _SCORE_BYTES:
        return attend_whole(q, k, v, positions)
    at_once = min(max(_SCORE_BYTES // row, 1), new)
    padding = -new % at_once  # queries that are dropped again
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    positions = jnp.pad(positions, ((0, 0), (0, padding)))
    blocks = q.reshape(batch, -1, at_once, n_kv_heads, n_heads // n_kv_heads, head_dim)
    places = jnp.moveaxis(positions.reshape(batch, -1, at_once), 1, 0)

    def attend_head(head: tuple[Array, Any, Any]) -> Array:
        q_blocks, k, v = head
        k, v = jax.tree.map(lambda cached: cached[:, :, None], (k, v))
        return lax.map(lambda block: attend_whole(block[0], k, v, block[1]), (q_blocks, places))

    heads = jax.tree.map(lambda cached: jnp.moveaxis(cached, 2, 0), (k, v))
    found = lax.map(attend_head, (blocks.transpose(3, 1, 0, 2, 4, 5), *heads))
    return found.transpose(2, 1, 3, 0, 4, 5).reshape(q.shape)[:, :new]


def attend_whole(
    q: Float[Array, "B T N H"], k: KV, v: KV, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """Attention to all of k and v at once."""
    if q.shape[1] > 1:
        return attend(q, k, v, positions)
    pattern = attention_pattern(q, k, causal_mask(positions, k.shape[1]))
    return _sum_of_values(pattern, dequantize(v, q.dtype)).astype(q.dtype)


def _sum_of_values(
    pattern: Float[Array, "B N 1 S"], v: Float[Array, "B S K H"]
) -> Float[Array, "B 1 N H"]:
    # For one token XLA's CPU backend runs a sum over rows faster than a product, for which it would
    # first transpose the values.
    batch, n_keys, n_kv_heads, head_dim = v.shape
    weights = pattern.astype(v.dtype).reshape(batch, n_kv_heads, -1, n_keys)
    by_key = weights.transpose(0, 3, 1, 2).astype(jnp.float32)
    mixed = jnp.sum(by_key[..., None] * v[:, :, :, None].astype(jnp.float32), axis=1)
    return mixed.reshape(batch, 1, -1, head_dim)
