"""The network: `forward`, plain, and its two jitted doors, `prefill` and `decode`.

Dimension letters: B batch, T new tokens, S cache capacity, N query heads, K key/value heads, G = N / K,
H head dim, D model dim, F feed-forward dim, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .attention import attention, causal_mask, used_attention
from .cache import Cache, check_room, write_cache
from .config import Config
from .linear import linear, linears
from .params import Layer, Params
from .quantization import Quantized, Slots, activation_dtype, dequantize
from .rope import apply_rope, rope_tables

Tap = Callable[[str, Array], Array]


def no_tap(name: str, array: Array) -> Array:
    """The default tap: every named activation passes through unchanged."""
    return array


def forward(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    config: Config,
    cache: Cache | None = None,
    *,
    tap: Tap = no_tap,
) -> tuple[Float[Array, "B T V"], Cache | None]:
    """Logits (float32) at every position, and the cache with the tokens appended at its lengths.

    `tap(name, array)` may read or replace every named activation. Not jitted: jit it, differentiate
    it or vmap it yourself. Ids outside the vocabulary or a full cache raise ValueError (not under a
    trace: there an id outside, or a token without a slot, gives NaN logits).
    """
    check_tokens(tokens, config)
    if cache is not None:
        check_room(cache, tokens.shape[0], tokens.shape[1])
    x, k, v = _blocks(params, jnp.asarray(_int32(tokens)), config, cache, tap, _block)
    if cache is not None:
        cache = Cache(k, v, cache.lengths + tokens.shape[1])
    return _logits(params, x, config, tap), cache


def prefill(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, " B"],
    cache: Cache,
    config: Config,
    *,
    tap: Tap = no_tap,
) -> tuple[Float[Array, "B V"], Cache]:
    """Append row b's first lengths[b] tokens to the cache; logits after the last of them.

    Tokens are right-padded with any id. T is padded further to its bucket (a power of two), so all
    calls in one bucket share one compilation. The cache is donated: use the one that comes back.
    """
    check_tokens(tokens, config)
    _check_lengths(lengths, tokens)
    check_room(cache, tokens.shape[0], lengths)
    padding = bucket(tokens.shape[1]) - tokens.shape[1]
    # Padded on the host: on the device every new length would compile a padding of its own.
    numpy = jnp if isinstance(tokens, Tracer) else np
    tokens = numpy.pad(numpy.asarray(tokens, np.int32), ((0, 0), (0, padding)))
    return prefill_unchecked(params, tokens, _int32(lengths), cache, config, tap)


def decode(
    params: Params,
    tokens: Int[Array | np.ndarray, " B"],
    cache: Cache,
    config: Config,
    *,
    tap: Tap = no_tap,
) -> tuple[Float[Array, "B V"], Cache]:
    """Append one token to every row; logits after it. The cache is donated."""
    check_tokens(tokens, config)
    check_room(cache, tokens.shape[0], 1)
    return _decode(params, _int32(tokens), cache, config, tap)


@partial(jax.jit, static_argnames=("config", "tap"), donate_argnames="cache")
def prefill_unchecked(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, " B"],
    cache: Cache,
    config: Config,
    tap: Tap,
) -> tuple[Float[Array, "B V"], Cache]:
    """`prefill` without its checks and its padding; a row of length 0 stays as it is."""
    x, k, v = _blocks(params, jnp.asarray(tokens), config, cache, tap, _block_once(tap))
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    logits = _logits(params, last, config, tap)[:, 0]
    return logits, Cache(k, v, cache.lengths + lengths)


def decode_step(
    params: Params, tokens: Int[Array, " B"], cache: Cache, config: Config, tap: Tap = no_tap
) -> tuple[Float[Array, "B V"], Cache]:
    """`decode` without its checks and its jit, for loops that are jitted as a whole."""
    x, k, v = _blocks(params, tokens[:, None], config, cache, tap, _block_once(tap))
    return _logits(params, x, config, tap)[:, 0], Cache(k, v, cache.lengths + 1)


_decode = partial(jax.jit, static_argnames=("config", "tap"), donate_argnames="cache")(decode_step)


def bucket(length: int) -> int:
    """The power of two, at least 16, that a length is padded to, so that few shapes are compiled."""
    return max(16, 1 << (length - 1).bit_length())


def check_tokens(tokens: Int[Array | np.ndarray, "..."], config: Config) -> None:
    """Refuse an empty array and ids outside the vocabulary; under a trace nothing is checked."""
    if tokens.size == 0:
        raise ValueError(f"tokens of shape {tokens.shape} hold no token")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens are {tokens.dtype}, not integers")
    if isinstance(tokens, Tracer):
        return
    ids = np.asarray(tokens)
    wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
    if wrong.size:
        raise ValueError(
            f"token id {int(wrong[0])} is outside the vocabulary of {config.vocab_size}"
        )


def _int32(values: Int[Array | np.ndarray, "..."]) -> Int[Array | np.ndarray, "..."]:
    return values.astype(np.int32) if values.dtype != np.int32 else values


def _check_lengths(
    lengths: Int[Array | np.ndarray, " B"], tokens: Int[Array | np.ndarray, "B T"]
) -> None:
    if lengths.shape != tokens.shape[:1]:
        raise ValueError(f"lengths {lengths.shape} do not match tokens {tokens.shape}")
    if isinstance(lengths, Tracer):
        return
    values = np.asarray(lengths)
    wrong = values[(values < 1) | (values > tokens.shape[1])]
    if wrong.size:
        raise ValueError(f"length {int(wrong[0])} is not in 1 .. {tokens.shape[1]}")


def _blocks(
    params: Params,
    tokens: Int[Array, "B T"],
    config: Config,
    cache: Cache | None,
    tap: Tap,
    block: Callable[..., Any],
) -> tuple[Float[Array, "B T D"], tuple[Slots, ...], tuple[Slots, ...]]:
    """Embedding and all layers, and each layer's keys and values: the cache's slots if there is one."""
    _check_tree(params, config, cache)
    batch, new = tokens.shape
    start = jnp.zeros(batch, jnp.int32) if cache is None else cache.lengths
    positions = start[:, None] + jnp.arange(new)[None]
    tables = rope_tables(positions, config)
    x = tap("embed", _embed(params.embedding, tokens, activation_dtype(params)))
    k, v = [], []
    for index, layer in enumerate(params.layers):
        slots = None if cache is None else (cache.k[index], cache.v[index])
        layer_tap = tap if tap is no_tap else partial(_prefixed, tap, f"layers.{index}.")
        x, slots = block(layer, x, slots, positions, tables, config, layer_tap)
        k.append(slots[0])
        v.append(slots[1])
    if cache is not None:
        # Seen only under a trace, where nothing can be refused: a token without a slot gives NaN.
        fits = positions < cache.k[0].shape[1]
        x = jnp.where(fits[..., None], x, jnp.nan)
    return x, tuple(k), tuple(v)


def _check_tree(params: Params, config: Config, cache: Cache | None) -> None:
    counts = [len(params.layers)] + ([] if cache is None else [len(cache.k), len(cache.v)])
    if counts != [config.n_layers] * len(counts):
        raise ValueError(f"weights and cache have {counts} layers, the config {config.n_layers}")
    if (params.output is None) != config.tie_embeddings:
        raise ValueError("the config and the weights differ on whether the embedding is tied")


def _prefixed(tap: Tap, prefix: str, name: str, array: Array) -> Array:
    return tap(prefix + name, array)


def _block(
    layer: Layer,
    x: Float[Array, "B T D"],
    slots: tuple[Slots, Slots] | None,
    positions: Int[Array, "B T"],
    tables: tuple[Float[Array, "B T R"], Float[Array, "B T R"]],
    config: Config,
    tap: Tap,
) -> tuple[Float[Array, "B T D"], tuple[Slots, Slots]]:
    x = tap("resid_pre", x)
    h = rms_norm(x, layer.attn_norm, config.norm_eps)
    projections = [("BTD,NHD->BTNH", layer.wq), ("BTD,KHD->BTKH", layer.wk)]
    q, k, v = linears(h, [*projections, ("BTD,KHD->BTKH", layer.wv)])
    q = tap("attn.q", apply_rope(q, *tables))
    k = tap("attn.k", apply_rope(k, *tables))
    v = tap("attn.v", v)
    if slots is not None:
        k, v = write_cache(slots[0], k, positions), write_cache(slots[1], v, positions)
    if slots is not None and tap is no_tap:
        z = used_attention(q, k, v, positions)
    else:  # a tap is promised the scores of every slot
        mask = causal_mask(positions, k.shape[1])
        z = tap("attn.z", attention(q, k, v, mask, partial(_prefixed, tap, "attn.")))
    x = tap("resid_mid", x + tap("attn.out", linear("BTNH,DNH->BTD", z, layer.wo)))
    h = rms_norm(x, layer.ffn_norm, config.norm_eps)
    return tap("resid_post", x + _feed_forward(layer, h, tap)), (k, v)


_shared_block = jax.jit(_block, static_argnames=("config", "tap"))


def _block_once(tap: Tap) -> Callable[..., Any]:
    """`_block`, traced and lowered once for all layers if no tap tells them apart."""
    return _shared_block if tap is no_tap else _block


def _feed_forward(layer: Layer, x: Float[Array, "B T D"], tap: Tap) -> Float[Array, "B T D"]:
    """SwiGLU (arXiv:2002.05202)."""
    gate, up = linears(x, [("BTD,FD->BTF", layer.w_gate), ("BTD,FD->BTF", layer.w_up)])
    gate, up = tap("mlp.gate", gate), tap("mlp.up", up)
    return tap("mlp.out", linear("BTF,DF->BTD", jax.nn.silu(gate) * up, layer.w_down))


def rms_norm(
    x: Float[Array, "B T D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "B T D"]:
    """x over its root mean square (arXiv:1910.07467), eps under the root; float32 inside."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight.astype(jnp.float32)[None, None]).astype(x.dtype)


def _embed(
    embedding: Float[Array, "V D"] | Quantized, tokens: Int[Array, "B T"], dtype: Any
) -> Float[Array, "B T D"]:
    # Without the barrier XLA's CPU backend widens the whole bfloat16 table to float32 and hoists
    # the copy out of decode loops. An id outside the table gives NaN, not another token's row.
    embedding, tokens = lax.optimization_barrier((embedding, tokens))
    tokens = jnp.where(tokens < 0, embedding.shape[0], tokens)
    rows = jax.tree.map(lambda table: jnp.take(table, tokens, axis=0, mode="fill"), embedding)
    return dequantize(rows, dtype)


def _logits(
    params: Params, x: Float[Array, "B T D"], config: Config, tap: Tap
) -> Float[Array, "B T V"]:
    x = tap("final_norm", rms_norm(x, params.norm, config.norm_eps))
    output = params.embedding if params.output is None else params.output
    return tap("logits", linear("BTD,VD->BTV", x, output, jnp.float32))
