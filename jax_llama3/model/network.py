"""The network: tokens to logits, with or without a cache.

Dimension letters: B batch, T new tokens, S cache capacity, N query heads, K key/value heads, G = N / K,
H head dim, D model dim, F feed-forward dim, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from .cache import Cache, capacity
from .config import Config
from .layers import embed, layer, unembed
from .ops import PLAIN, Ops
from .params import Params
from .quantization import activation_dtype
from .taps import Tap, no_tap, within

Run = Callable[..., Any]  # calls a part of the network, its first argument, with the others


def forward(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    config: Config,
    cache: Cache | None = None,
    *,
    tap: Tap = no_tap,
    ops: Ops = PLAIN,
) -> tuple[Float[Array, "B T V"], Cache | None]:
    """Logits (float32) at every position, and the cache with the tokens appended at its lengths.

    `tap(name, array)` may read or replace every named activation. Nothing is jitted and nothing is
    checked: an id outside the vocabulary, or a token without a place in the cache, gives NaN logits.
    """
    return apply_network(params, tokens, None, cache, config, tap, ops)


def call(part: Callable[..., Any], *arguments: Any) -> Any:
    """Run a part of the network as it stands."""
    return part(*arguments)


def apply_network(
    params: Params,
    tokens: Any,
    lengths: Any,
    cache: Cache | None,
    config: Config,
    tap: Tap,
    ops: Ops,
    run: Run = call,
) -> tuple[Any, Any]:
    """The one loop over the layers.

    Logits after the last of row b's first lengths[b] tokens [B V], or without `lengths` at every
    position [B T V]; and the cache with the tokens appended. `run` is called with each part of the
    network and its arguments: `call` calls the part, others compile it first, or only lower it.
    """
    whole = within(tap, "")
    start = jnp.zeros(tokens.shape[0], jnp.int32) if cache is None else cache.lengths
    dtype = activation_dtype(params)
    x, positions, tables = run(embed, params.embedding, tokens, start, config, dtype, ops)
    x = whole("embed", x)
    layers = []
    for index, weights in enumerate(params.layers):
        kv = None if cache is None else (cache.k[index], cache.v[index])
        layer_tap = within(tap, f"layers.{index}.")
        x, kv = run(layer, weights, x, kv, positions, tables, config, layer_tap, ops)
        layers.append(kv)
    output = params.embedding if params.output is None else params.output
    room = None if cache is None else capacity(cache)
    head = (params.norm, output, x, positions, start, lengths, room, config, whole, ops)
    logits, filled = run(unembed, *head)
    if cache is None:
        return logits, None
    k, v = zip(*layers, strict=True)
    return logits, Cache(k, v, filled)
