"""The key/value cache: preallocated, one array per layer, every row with its own length."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from .config import Config
from .quantization import KV, Quantized, quantize_array

_MAX_SLICES = 4  # rows written one by one; beyond, one scatter is cheaper


class Cache(NamedTuple):
    """Places 0 .. lengths[b] - 1 of row b are filled; what the others hold, if finite, never matters."""

    k: tuple[KV, ...]  # per layer
    v: tuple[KV, ...]
    lengths: Int[Array, " B"]


def init_cache(config: Config, batch: int, capacity: int, dtype: Any) -> Cache:
    """An empty cache of `capacity` tokens for each of `batch` rows.

    With `jnp.int8` keys and values are quantised as they are written, per token and head.
    """
    for name, value in (("batch", batch), ("capacity", capacity)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    shape = (batch, capacity, config.n_kv_heads, config.head_dim)
    # Each layer needs buffers of its own: a donated buffer cannot be given away twice.
    k = tuple(_empty(shape, dtype) for _ in range(config.n_layers))
    v = tuple(_empty(shape, dtype) for _ in range(config.n_layers))
    return Cache(k, v, jnp.zeros(batch, jnp.int32))


def _empty(shape: tuple[int, ...], dtype: Any) -> KV:
    if jnp.dtype(dtype) == jnp.int8:
        return Quantized(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
    return jnp.zeros(shape, dtype)


def capacity(cache: Cache) -> int:
    """For how many tokens every row has a place."""
    return cache.k[0].shape[1]


def write_cache(kv: KV, new: Float[Array, "B T K H"], positions: Int[Array, "B T"]) -> KV:
    """Put `new` at each row's own positions; of several tokens those past the capacity are dropped."""
    written = quantize_array(new, 1) if isinstance(kv, Quantized) else new
    return jax.tree.map(partial(_write, positions), kv, written)


def _write(
    positions: Int[Array, "B T"], old: Num[Array, "B S ..."], new: Num[Array, "B T ..."]
) -> Num[Array, "B S ..."]:
    new = new.astype(old.dtype)
    batch, length = positions.shape
    if length == 1 and batch <= _MAX_SLICES:
        # A slice is written in place; a scatter makes XLA's CPU backend copy the whole cache.
        for row in range(batch):
            start = (row, positions[row, 0], *[0] * (old.ndim - 2))
            old = _write_slice(old, new[row : row + 1], start)
        return old
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    return old.at[rows, positions].set(new, mode="drop")


def _write_slice(
    old: Num[Array, "B S ..."], new: Num[Array, "1 1 ..."], start: tuple
) -> Num[Array, "B S ..."]:
    start = tuple(jnp.asarray(place, jnp.int32) for place in start)  # all of one dtype
    if old.dtype.itemsize != 2:
        return lax.dynamic_update_slice(old, new, start)
    # As integers: XLA's CPU backend would widen a whole narrow cache to write one token of it.
    bits, new_bits = (lax.bitcast_convert_type(each, jnp.uint16) for each in (old, new))
    return lax.bitcast_convert_type(lax.dynamic_update_slice(bits, new_bits, start), old.dtype)
