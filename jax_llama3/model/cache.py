"""The key/value cache: preallocated, one array per layer, every row with its own length."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Num

from .config import Config
from .quantization import Quantized, Slots, quantize_array

_MAX_SLICES = 4  # rows written one by one; beyond, one scatter is cheaper


class Cache(NamedTuple):
    """Slots 0 .. lengths[b] - 1 of row b are filled; what the others hold, if finite, never matters."""

    k: tuple[Slots, ...]
    v: tuple[Slots, ...]
    lengths: Int[Array, " B"]


def init_cache(config: Config, batch: int, capacity: int, dtype: Any) -> Cache:
    """An empty cache of `capacity` slots for each of `batch` rows.

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


def _empty(shape: tuple[int, ...], dtype: Any) -> Slots:
    if jnp.dtype(dtype) == jnp.int8:
        return Quantized(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
    return jnp.zeros(shape, dtype)


def write_cache(slots: Slots, new: Float[Array, "B T K H"], positions: Int[Array, "B T"]) -> Slots:
    """Put `new` into each row's own slots; of several tokens those past the capacity are dropped."""
    written = quantize_array(new, 1) if isinstance(slots, Quantized) else new
    return jax.tree.map(partial(_write, positions), slots, written)


def _write(
    positions: Int[Array, "B T"], slots: Num[Array, "B S ..."], new: Num[Array, "B T ..."]
) -> Num[Array, "B S ..."]:
    new = new.astype(slots.dtype)
    batch, length = positions.shape
    if length == 1 and batch <= _MAX_SLICES:
        # A slice is written in place; a scatter makes XLA's CPU backend copy the whole cache.
        for row in range(batch):
            start = (row, positions[row, 0], *[0] * (slots.ndim - 2))
            slots = _write_slice(slots, new[row : row + 1], start)
        return slots
    rows = jnp.arange(batch)[:, None]
    return slots.at[rows, positions].set(new, mode="drop")


def _write_slice(
    slots: Num[Array, "B S ..."], new: Num[Array, "1 1 ..."], start: tuple
) -> Num[Array, "B S ..."]:
    if slots.dtype.itemsize != 2:
        return lax.dynamic_update_slice(slots, new, start)
    # As integers: XLA's CPU backend would widen a whole narrow cache to write one slot of it.
    bits, new_bits = (lax.bitcast_convert_type(each, jnp.uint16) for each in (slots, new))
    return lax.bitcast_convert_type(lax.dynamic_update_slice(bits, new_bits, start), slots.dtype)


def check_room(cache: Cache, batch: int, new: Any) -> None:
    """Refuse `new` more tokens (a number, or one per row) where a row has no slots left for them.

    Refuses a batch of another size too. Under a trace lengths cannot be known and are not checked.
    """
    if batch != cache.lengths.shape[0]:
        raise ValueError(f"the batch has {batch} rows and the cache {cache.lengths.shape[0]}")
    if isinstance(cache.lengths, Tracer) or isinstance(new, Tracer):
        return
    capacity = cache.k[0].shape[1]
    needed = np.asarray(cache.lengths) + np.asarray(new)
    if needed.max() > capacity:
        row = int(needed.argmax())
        raise ValueError(
            f"row {row} needs {int(needed[row])} cache slots and the cache has {capacity}; "
            "make it with a larger capacity"
        )
