"""The network: `forward`, plain, and its two jitted doors, `prefill` and `decode`.

Dimension letters: B batch, T new tokens, S cache capacity, N query heads, K key/value heads, G = N / K,
H head dim, D model dim, F feed-forward dim, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

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
_SHORT_PROMPT = 16  # tokens: the smallest bucket


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
    return _network(params, jnp.asarray(_int32(tokens)), None, cache, config, tap, _PLAIN)


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
    calls in one bucket share one compilation. The cache is donated, to a call that fails on its way
    too: use the one that comes back.
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


def prefill_unchecked(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, " B"],
    cache: Cache,
    config: Config,
    tap: Tap,
) -> tuple[Float[Array, "B V"], Cache]:
    """`prefill` without its checks and its padding; a row of length 0 stays as it is.

    Without a tap one compiled layer runs for all layers in turn, so that a process which starts
    compiles one layer and prepares its products once. With a tap the network is one program.
    """
    run = _last_logits if tap is no_tap else _tapped_prefill
    return run(params, tokens, lengths, cache, config, tap)


def prefill_programs(
    params: Params,
    tokens: Int[Array | np.ndarray | jax.ShapeDtypeStruct, "B T"],
    lengths: Int[Array | np.ndarray | jax.ShapeDtypeStruct, " B"],
    cache: Cache,
    config: Config,
) -> Iterator[jax.stages.Lowered]:
    """What `prefill_unchecked` runs without a tap, lowered; only shapes and dtypes are looked at."""
    dtype = activation_dtype(params)
    begin = (params.embedding, tokens, cache.lengths)
    x, positions, tables = jax.eval_shape(partial(_begin, config=config, dtype=dtype), *begin)
    yield _JITTED.begin.lower(*begin, config, dtype)
    # A checkpoint may mix dtypes; layers that do not differ are one program.
    layers = {str(jax.tree.map(jnp.result_type, layer)): layer for layer in params.layers}
    for layer in layers.values():
        slots = (cache.k[0], cache.v[0])
        yield _JITTED.block.lower(layer, x, slots, positions, tables, config, no_tap)
    end = (params.norm, _output(params), x, positions, cache.lengths, lengths)
    yield _JITTED.end.lower(*end, _capacity(cache), config, no_tap)


def decode_step(
    params: Params, tokens: Int[Array, " B"], cache: Cache, config: Config, tap: Tap = no_tap
) -> tuple[Float[Array, "B V"], Cache]:
    """`decode` without its checks and its jit, for loops that are jitted as a whole."""
    return _last_logits(params, tokens[:, None], jnp.ones_like(tokens), cache, config, tap)


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
    if isinstance(values, np.ndarray):
        return np.array(values, np.int32)  # a copy: the caller may change his before it is read
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


def _last_logits(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, " B"],
    cache: Cache,
    config: Config,
    tap: Tap,
) -> tuple[Float[Array, "B V"], Cache]:
    parts = _JITTED if tap is no_tap else _PLAIN
    return _network(params, tokens, lengths, cache, config, tap, parts)


_decode = jax.jit(decode_step, static_argnames=("config", "tap"), donate_argnames="cache")
_tapped_prefill = jax.jit(_last_logits, static_argnames=("config", "tap"), donate_argnames="cache")


class _Parts(NamedTuple):
    """What the network is run in: its beginning, a layer, and its end."""

    begin: Any
    block: Any
    end: Any


def _network(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, " B"] | None,
    cache: Cache | None,
    config: Config,
    tap: Tap,
    parts: _Parts,
) -> tuple[Float[Array, "B T V"] | Float[Array, "B V"], Any]:
    """The cache with the tokens appended, and logits: after each row's last token, or without
    `lengths` at all positions."""
    _check_tree(params, config, cache)
    start = jnp.zeros(tokens.shape[0], jnp.int32) if cache is None else cache.lengths
    dtype = activation_dtype(params)
    x, positions, tables = parts.begin(params.embedding, tokens, start, config, dtype)
    x = tap("embed", x)
    k, v = [], []
    for index, layer in enumerate(params.layers):
        slots = None if cache is None else (cache.k[index], cache.v[index])
        layer_tap = tap if tap is no_tap else partial(_prefixed, tap, f"layers.{index}.")
        x, slots = parts.block(layer, x, slots, positions, tables, config, layer_tap)
        k.append(slots[0])
        v.append(slots[1])
    end = (
        params.norm,
        _output(params),
        x,
        positions,
        start,
        lengths,
        _capacity(cache),
        config,
        tap,
    )
    logits, filled = parts.end(*end)
    return logits, None if cache is None else Cache(tuple(k), tuple(v), filled)


def _capacity(cache: Cache | None) -> int | None:
    return None if cache is None else cache.k[0].shape[1]


def _output(params: Params) -> Any:
    """The head's matrix: the embedding where they are tied."""
    return params.embedding if params.output is None else params.output


def _check_tree(params: Params, config: Config, cache: Cache | None) -> None:
    counts = [len(params.layers)] + ([] if cache is None else [len(cache.k), len(cache.v)])
    if counts != [config.n_layers] * len(counts):
        raise ValueError(f"weights and cache have {counts} layers, the config {config.n_layers}")
    if (params.output is None) != config.tie_embeddings:
        raise ValueError("the config and the weights differ on whether the embedding is tied")


def _prefixed(tap: Tap, prefix: str, name: str, array: Array) -> Array:
    return tap(prefix + name, array)


def _begin(
    embedding: Float[Array, "V D"] | Quantized,
    tokens: Int[Array, "B T"],
    start: Int[Array, " B"],
    config: Config,
    dtype: Any,
) -> tuple[
    Float[Array, "B T D"],
    Int[Array, "B T"],
    tuple[Float[Array, "B T R"], Float[Array, "B T R"]],
]:
    """The tokens' embeddings, positions, and cosines and sines."""
    positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
    x = _embed(embedding, tokens, dtype)
    return x, positions, rope_tables(positions, config)


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
    kernel = not _is_short_prompt(positions)
    h = rms_norm(x, layer.attn_norm, config.norm_eps)
    projections = [("BTD,NHD->BTNH", layer.wq), ("BTD,KHD->BTKH", layer.wk)]
    q, k, v = linears(h, [*projections, ("BTD,KHD->BTKH", layer.wv)], kernel=kernel)
    q = tap("attn.q", apply_rope(q, *tables))
    k = tap("attn.k", apply_rope(k, *tables))
    v = tap("attn.v", v)
    if slots is not None:
        k, v = write_cache(slots[0], k, positions), write_cache(slots[1], v, positions)
    if slots is not None and tap is no_tap:
        z = used_attention(q, k, v, positions, kernel=kernel)
    else:  # a tap is promised the scores of every slot
        mask = causal_mask(positions, k.shape[1])
        z = tap("attn.z", attention(q, k, v, mask, partial(_prefixed, tap, "attn.")))
    x = tap("resid_mid", x + tap("attn.out", linear("BTNH,DNH->BTD", z, layer.wo, kernel=kernel)))
    h = rms_norm(x, layer.ffn_norm, config.norm_eps)
    return tap("resid_post", x + _feed_forward(layer, h, tap, kernel)), (k, v)


def _is_short_prompt(positions: Int[Array, "B T"]) -> bool:
    # The first thing a new process does is often such a prompt: to import the kernels for it would
    # take longer than it takes without them.
    return positions.shape[1] > 1 and positions.size <= _SHORT_PROMPT


def _feed_forward(
    layer: Layer, x: Float[Array, "B T D"], tap: Tap, kernel: bool
) -> Float[Array, "B T D"]:
    """SwiGLU (arXiv:2002.05202)."""
    projections = [("BTD,FD->BTF", layer.w_gate), ("BTD,FD->BTF", layer.w_up)]
    gate, up = linears(x, projections, kernel=kernel)
    gate, up = tap("mlp.gate", gate), tap("mlp.up", up)
    # A bfloat16 would be rounded after each of the steps that silu consists of.
    gated = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return tap("mlp.out", linear("BTF,DF->BTD", gated.astype(x.dtype), layer.w_down, kernel=kernel))


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


def _end(
    norm: Float[Array, " D"],
    output: Float[Array, "V D"] | Quantized,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    start: Int[Array, " B"],
    lengths: Int[Array | np.ndarray, " B"] | None,
    capacity: int | None,
    config: Config,
    tap: Tap,
) -> tuple[Float[Array, "B T V"] | Float[Array, "B V"], Int[Array, " B"]]:
    """Logits after each row's last token, or without `lengths` at all positions, and the new lengths."""
    filled = start + (positions.shape[1] if lengths is None else lengths)
    if capacity is not None:
        # Seen only under a trace, where nothing can be refused: a token without a slot gives NaN.
        x = jnp.where((positions < capacity)[..., None], x, jnp.nan)
    if lengths is not None:
        x = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    x = tap("final_norm", rms_norm(x, norm, config.norm_eps))
    kernel = not _is_short_prompt(positions)
    logits = linear("BTD,VD->BTV", x, output, jnp.float32, kernel=kernel)
    logits = tap("logits", logits)
    return logits if lengths is None else logits[:, 0], filled


_PLAIN = _Parts(_begin, _block, _end)
# For all layers and all calls one trace of each, which only taps could tell apart.
_JITTED = _Parts(
    jax.jit(_begin, static_argnames=("config", "dtype")),
    jax.jit(_block, static_argnames=("config", "tap"), donate_argnames="slots"),
    jax.jit(_end, static_argnames=("capacity", "config", "tap"), donate_argnames="start"),
)
