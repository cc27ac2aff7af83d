"""Attention of many queries over the filled part of a cache, on a CPU: an optional kernel.

XLA's form computes the scores of all keys and hides those of later tokens. The kernel leaves them out,
and keeps a block of scores in the processor's cache until the values are summed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .calls import result_type, with_attention_derivatives
from .registration import PREFILL_ATTENTION

_FEWEST = 8  # queries; XLA's form is as fast for fewer
_WIDTH = 32  # of a head: whole vectors
_KEYS = 64  # the kernel's memory holds a multiple of so many


def serves_prefill_attention(q: Any, k: Any, v: Any) -> bool:
    """Whether the kernel takes q [B T N H] and a cache of these dtypes and shapes."""
    dtype = jnp.dtype(q.dtype).name
    alike = q.dtype == getattr(k, "dtype", None) == getattr(v, "dtype", None)
    served = alike and dtype in ("bfloat16", "float32") and k.shape[1] > 0
    if not (served and q.shape[1] >= _FEWEST and q.shape[3] % _WIDTH == 0):
        return False
    from .compiled.tiles import HAS_FLOATS, HAS_TILES

    # XLA multiplies bfloat16 by AMX tiles, which this kernel does not use.
    return HAS_FLOATS and not (HAS_TILES and dtype == "bfloat16")


@with_attention_derivatives
def prefill_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys up to each query's position; scores are float32.

    Subnormal numbers (below 1e-38) may be taken as zero, and values within a factor S of the largest
    float32 may overflow.
    """
    from .compiled.tiles import HAS_PAIRS, TILE_ROWS

    dtype, new = q.dtype, q.shape[1]
    if not HAS_PAIRS:
        q = q.astype(jnp.float32)
    padding = -new % TILE_ROWS
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    positions = jnp.pad(positions.astype(jnp.int32), ((0, 0), (0, padding)))
    n_keys = k.shape[1] + -k.shape[1] % _KEYS
    room = jax.ShapeDtypeStruct((k.shape[0], n_keys, *k.shape[2:]), q.dtype)
    operands = [q, positions, k, v]
    # Beside the result there is memory in which the kernel rearranges the keys, and the values.
    types = [result_type(each, operands) for each in (q, room, room)]
    call = jax.ffi.ffi_call(PREFILL_ATTENTION, types, vmap_method="sequential")
    return call(*operands)[0][:, :new].astype(dtype)
