"""The public doors to the network: `forward`, plain, and `prefill` and `decode`, jitted."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ..model import network
from ..model.cache import Cache
from ..model.config import Config
from ..model.ops import Ops
from ..model.params import Params
from ..model.taps import Tap, no_tap
from .checks import check_lengths, check_rank, check_room, check_tokens, check_tree
from .programs import bucket, choose_ops, decode_compiled, int32, read_tokens


def forward(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    config: Config,
    cache: Cache | None = None,
    *,
    tap: Tap = no_tap,
    ops: Ops | None = None,
) -> tuple[Float[Array, "B T V"], Cache | None]:
    """Logits (float32) at every position, and the cache with the tokens appended at its lengths.

    `tap(name, array)` may read or replace every named activation. Not jitted: jit it, differentiate
    it or vmap it yourself. Ids outside the vocabulary or a full cache raise ValueError (not under a
    trace: there an id outside, or a token without a place in the cache, gives NaN logits). `ops` are
    the operations that it computes with: by default the fastest for the device.
    """
    check_rank(tokens, "B T")
    check_tokens(tokens, config)
    if cache is not None:
        check_room(cache, tokens.shape[0], tokens.shape[1])
    check_tree(params, config, cache)
    batch, new = tokens.shape
    ops = choose_ops(params, batch, new, tap) if ops is None else ops
    return network.forward(params, jnp.asarray(int32(tokens)), config, cache, tap=tap, ops=ops)


def prefill(
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, " B"],
    cache: Cache,
    config: Config,
    *,
    tap: Tap = no_tap,
    ops: Ops | None = None,
) -> tuple[Float[Array, "B V"], Cache]:
    """Append row b's first lengths[b] tokens to the cache; logits after the last of them.

    Tokens are right-padded with any id. T is padded further to its bucket (a power of two), so all
    calls in one bucket share one compilation. The cache is donated, to a call that fails on its way
    too: use the one that comes back. `tap` must be pure and hashable; `ops` is that of `forward`.
    Ids, lengths and rows that cannot be served raise ValueError.
    """
    check_rank(tokens, "B T")
    check_tokens(tokens, config)
    check_lengths(lengths, tokens)
    check_room(cache, tokens.shape[0], lengths)
    check_tree(params, config, cache)
    padding = bucket(tokens.shape[1]) - tokens.shape[1]
    # Padded on the host: on the device every new length would compile a padding of its own.
    xp = jnp if isinstance(tokens, Tracer) else np
    tokens = xp.pad(xp.asarray(tokens, np.int32), ((0, 0), (0, padding)))
    batch, new = tokens.shape
    ops = choose_ops(params, batch, new, tap) if ops is None else ops
    return read_tokens(params, tokens, int32(lengths), cache, config, tap, ops)


def decode(
    params: Params,
    tokens: Int[Array | np.ndarray, " B"],
    cache: Cache,
    config: Config,
    *,
    tap: Tap = no_tap,
    ops: Ops | None = None,
) -> tuple[Float[Array, "B V"], Cache]:
    """Append one token to every row; logits after it. The cache is donated.

    `tap` must be pure and hashable; `ops` is that of `forward`. An id outside the vocabulary and a
    full row raise ValueError.
    """
    check_rank(tokens, "B")
    check_tokens(tokens, config)
    check_room(cache, tokens.shape[0], 1)
    check_tree(params, config, cache)
    ops = choose_ops(params, tokens.shape[0], 1, tap) if ops is None else ops
    return decode_compiled(params, int32(tokens), cache, config, tap, ops)
