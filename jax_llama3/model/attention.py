"""Grouped-query attention (arXiv:2305.13245): N query heads share K key/value heads, none repeated."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .quantization import KV, dequantize
from .taps import Tap, no_tap


def attend(
    q: Float[Array, "B T N H"],
    k: KV,
    v: KV,
    positions: Int[Array, "B T"],
    tap: Tap = no_tap,
) -> Float[Array, "B T N H"]:
    """Causal attention of queries at these positions: the plain form of `Ops.attend`."""
    return attention(q, k, v, causal_mask(positions, k.shape[1]), tap)


def causal_mask(positions: Int[Array, "B T"], n_keys: int) -> Bool[Array, "B T S"]:
    """True where a query may look: at the keys whose position is not after its own.

    What a row of a cache holds beyond its length has later positions, so this hides padding and what
    is left of earlier texts too.
    """
    return jnp.arange(n_keys, dtype=jnp.int32)[None, None] <= positions[..., None]


def attention(
    q: Float[Array, "B T N H"],
    k: KV,
    v: KV,
    mask: Bool[Array, "B T S"],
    tap: Tap = no_tap,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v with float32 scores; query head n reads key/value head n // (N / K).

    `tap` sees "scores" (masked) and "pattern", both [B N T S].
    """
    pattern = attention_pattern(q, k, mask, tap)
    return weighted_values(pattern, dequantize(v, q.dtype)).astype(q.dtype)


def attention_pattern(
    q: Float[Array, "B T N H"], k: KV, mask: Bool[Array, "B T S"], tap: Tap = no_tap
) -> Float[Array, "B N T S"]:
    """softmax(q k^T / sqrt(H)) in float32, 0 where the mask is False."""
    batch, new, n_heads, head_dim = q.shape
    n_keys, n_kv_heads = k.shape[1], k.shape[2]
    k = dequantize(k, q.dtype)
    # G queries of one group times T tokens are the rows of one product per key/value head.
    grouped = q.reshape(batch, new, n_kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    rows = grouped.reshape(batch, n_kv_heads, -1, head_dim)
    scores = _head_products(rows, k.transpose(0, 2, 1, 3)) * head_dim**-0.5
    scores = scores.reshape(batch, n_kv_heads, -1, new, n_keys)
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    scores = tap("scores", scores.reshape(batch, n_heads, new, n_keys))
    return tap("pattern", jax.nn.softmax(scores, axis=-1))


def weighted_values(
    pattern: Float[Array, "B N T S"], v: Float[Array, "B S K H"]
) -> Float[Array, "B T N H"]:
    """The sum of the values by their weights, in float32."""
    batch, n_heads, new, n_keys = pattern.shape
    n_kv_heads = v.shape[2]
    weights = pattern.astype(v.dtype)
    rows = weights.reshape(batch, n_kv_heads, n_heads // n_kv_heads * new, n_keys)
    mixed = _head_products(rows, v.transpose(0, 2, 3, 1))
    mixed = mixed.reshape(batch, n_kv_heads, -1, new, v.shape[3]).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, new, n_heads, -1)


def _head_products(
    x: Float[Array, "B K M C"], y: Float[Array, "B K O C"]
) -> Float[Array, "B K M O"]:
    """x times y over C for every row and head, in float32. XLA moves nothing: axes are in its order."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((3,), (3,)), ((0, 1), (0, 1)))
    return lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)
