"""Grouped-query attention (arXiv:2305.13245): N query heads share K key/value heads, none repeated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..kernels.cpu.decode_attention import attend_one, has_attention_kernel
from ..kernels.cpu.prefill_attention import attend_many, has_prompt_kernel
from .quantization import Quantized, Slots, dequantize

_SCORE_BYTES = 1 << 22  # of float32 scores at a time
_FIRST_SPAN = 256  # to read fewer slots gains next to nothing, and every branch is compiled


def causal_mask(positions: Int[Array, "B T"], n_keys: int) -> Bool[Array, "B T S"]:
    """True where a query may look: at the keys whose position is not after its own.

    A row's slots beyond its length hold later positions, so this hides padding and stale slots too.
    """
    return jnp.arange(n_keys)[None, None] <= positions[..., None]


def used_attention(
    q: Float[Array, "B T N H"],
    k: Slots,
    v: Slots,
    positions: Int[Array, "B T"],
    *,
    kernel: bool = True,
) -> Float[Array, "B T N H"]:
    """`attention` to a cache that reads the used slots alone: its cost is that of what is in it.

    Without `kernel` numba is not imported for it.
    """
    # Elsewhere a branch makes the device wait for the host, which costs more than it saves.
    cpu = _used_cpu if kernel else _attend_span
    return lax.platform_dependent(q, k, v, positions, cpu=cpu, default=_attend_all)


def _used_cpu(
    q: Float[Array, "B T N H"], k: Slots, v: Slots, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    dtypes = {each.values.dtype if isinstance(each, Quantized) else each.dtype for each in (k, v)}
    if q.shape[1] == 1 and len(dtypes) == 1 and has_attention_kernel(dtypes.pop(), q.shape[3]):
        return _attend_one(q, k, v, positions)
    if has_prompt_kernel(q, k, v):
        return _attend_many(q, k, v, positions)
    return _attend_span(q, k, v, positions)


def _plainly_differentiated(attend: Callable[..., Array]) -> Callable[..., Array]:
    """Give a kernel the derivatives of `_attend_all`."""
    function = jax.custom_jvp(attend)
    function.defjvp(lambda primals, tangents: jax.jvp(_attend_all, primals, tangents))
    return function


@_plainly_differentiated
def _attend_one(
    q: Float[Array, "B 1 N H"], k: Slots, v: Slots, positions: Int[Array, "B 1"]
) -> Float[Array, "B 1 N H"]:
    return attend_one(q, k, v, positions[:, 0])


_attend_many = _plainly_differentiated(attend_many)


def _attend_all(
    q: Float[Array, "B T N H"], k: Slots, v: Slots, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    return attention(q, k, v, causal_mask(positions, k.shape[1]))


def _attend_span(
    q: Float[Array, "B T N H"], k: Slots, v: Slots, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """The first slots alone, up to a power of two that holds the used ones: a branch for each."""
    capacity = k.shape[1]
    spans = [_FIRST_SPAN << i for i in range((max(capacity - 1, 1) // _FIRST_SPAN).bit_length())]
    index = jnp.sum(jnp.max(positions) >= jnp.array(spans, jnp.int32))
    over = [partial(_attend_first, span=span) for span in [*spans, capacity]]
    return lax.switch(index, over, q, k, v, positions)


def _attend_first(
    q: Float[Array, "B T N H"], k: Slots, v: Slots, positions: Int[Array, "B T"], *, span: int
) -> Float[Array, "B T N H"]:
    k, v = jax.tree.map(lambda slots: slots[:, :span], (k, v))
    return _attend_blocks(q, k, v, positions)


def _attend_blocks(
    q: Float[Array, "B T N H"], k: Slots, v: Slots, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    """Head by head and block by block of queries, so that the scores stay in the processor's cache."""
    batch, new, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1], k.shape[2]
    row = 4 * batch * n_heads // n_kv_heads * n_keys  # bytes of one query's scores, one head of k
    if n_kv_heads * new * row <= _SCORE_BYTES:
        return _attend_all(q, k, v, positions)
    at_once = min(max(_SCORE_BYTES // row, 1), new)
    padding = -new % at_once  # queries that are dropped again
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    positions = jnp.pad(positions, ((0, 0), (0, padding)))
    blocks = q.reshape(batch, -1, at_once, n_kv_heads, n_heads // n_kv_heads, head_dim)
    places = jnp.moveaxis(positions.reshape(batch, -1, at_once), 1, 0)

    def attend_head(head: tuple[Array, Any, Any]) -> Array:
        q_blocks, k, v = head
        k, v = jax.tree.map(lambda slots: slots[:, :, None], (k, v))
        return lax.map(lambda block: _attend_all(block[0], k, v, block[1]), (q_blocks, places))

    heads = jax.tree.map(lambda slots: jnp.moveaxis(slots, 2, 0), (k, v))
    found = lax.map(attend_head, (blocks.transpose(3, 1, 0, 2, 4, 5), *heads))
    return found.transpose(2, 1, 3, 0, 4, 5).reshape(q.shape)[:, :new]


def _untapped(name: str, array: Array) -> Array:
    return array


def attention(
    q: Float[Array, "B T N H"],
    k: Slots,
    v: Slots,
    mask: Bool[Array, "B T S"],
    tap: Callable[[str, Array], Array] = _untapped,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v with float32 scores; query head n reads key/value head n // (N / K).

    `tap` sees "scores" (masked) and "pattern", both [B N T S].
    """
    batch, new, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1], k.shape[2]
    k, v = dequantize(k, q.dtype), dequantize(v, q.dtype)
    # G queries of one group times T tokens are the rows of one product per key/value head.
    grouped = q.reshape(batch, new, n_kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    rows = grouped.reshape(batch, n_kv_heads, -1, head_dim)
    scores = _product(rows, k.transpose(0, 2, 1, 3)) * head_dim**-0.5
    scores = scores.reshape(batch, n_kv_heads, -1, new, n_keys)
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    scores = tap("scores", scores.reshape(batch, n_heads, new, n_keys))
    pattern = tap("pattern", jax.nn.softmax(scores, axis=-1))
    weights = pattern.astype(v.dtype).reshape(batch, n_kv_heads, -1, new, n_keys)
    return _mix(weights, v).astype(q.dtype).reshape(q.shape)


def _mix(
    weights: Float[Array, "B K G T S"], v: Float[Array, "B S K H"]
) -> Float[Array, "B T K G H"]:
    """The sum of the values by their weights, in float32."""
    if weights.shape[3] > 1:
        return _mix_many(weights, v)
    return lax.platform_dependent(weights, v, cpu=_mix_one, default=_mix_many)


def _mix_many(
    weights: Float[Array, "B K G T S"], v: Float[Array, "B S K H"]
) -> Float[Array, "B T K G H"]:
    batch, n_kv_heads, group, new, n_keys = weights.shape
    rows = weights.reshape(batch, n_kv_heads, group * new, n_keys)
    mixed = _product(rows, v.transpose(0, 2, 3, 1))
    return mixed.reshape(batch, n_kv_heads, group, new, -1).transpose(0, 3, 1, 2, 4)


def _mix_one(
    weights: Float[Array, "B K G 1 S"], v: Float[Array, "B S K H"]
) -> Float[Array, "B 1 K G H"]:
    # For one token XLA's CPU backend runs a sum over rows faster than a product, for which it would
    # first transpose the values.
    by_slot = weights[..., 0, :].transpose(0, 3, 1, 2).astype(jnp.float32)
    return jnp.sum(by_slot[..., None] * v[:, :, :, None].astype(jnp.float32), axis=1)[:, None]


def _product(x: Float[Array, "B K M C"], y: Float[Array, "B K O C"]) -> Float[Array, "B K M O"]:
    """Over C, in float32. The order of axes is that of the operands: XLA moves nothing."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((3,), (3,)), ((0, 1), (0, 1)))
    return lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)
