"""Attention of many queries over a cache's used slots, on a CPU: an optional kernel.

XLA's form computes the scores of all slots and hides those of later tokens. The kernel leaves them out,
and keeps a block of scores in the processor's cache until the values are summed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .registration import PROMPT_ATTENTION, has_kernels, result_type

_FEWEST = 8  # queries; XLA's form is as fast for fewer
_WIDTH = 32  # of a head: whole vectors
_SLOTS = 64  # there is room for so many at a time


def has_prompt_kernel(q: Any, k: Any, v: Any) -> bool:
    """Whether the kernel can be had and takes q [B T N H] and slots of these dtypes and shapes."""
    dtype = jnp.dtype(q.dtype).name
    alike = q.dtype == getattr(k, "dtype", None) == getattr(v, "dtype", None)
    served = alike and dtype in ("bfloat16", "float32") and k.shape[1] > 0
    if not (served and q.shape[1] >= _FEWEST and q.shape[3] % _WIDTH == 0 and has_kernels()):
        return False
    from .compiled.tiles import HAS_FLOATS, HAS_TILES

    return HAS_FLOATS and not (HAS_TILES and dtype == "bfloat16")  # XLA uses them


def attend_many(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the slots up to each query's position; scores are float32.

    It has no derivative of its own. Subnormal numbers (below 1e-38) may be taken as zero, and values
    within a factor S of the largest float32 may overflow.
    """
    from .compiled.tiles import HAS_PAIRS, TILE_ROWS

    dtype, new = q.dtype, q.shape[1]
    if not HAS_PAIRS:
        q = q.astype(jnp.float32)
    padding = -new % TILE_ROWS
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    positions = jnp.pad(positions.astype(jnp.int32), ((0, 0), (0, padding)))
    slots = k.shape[1] + -k.shape[1] % _SLOTS
    room = jax.ShapeDtypeStruct((k.shape[0], slots, *k.shape[2:]), q.dtype)
    operands = [q, positions, k, v]
    types = [result_type(each, operands) for each in (q, room, room)]  # panels of keys, of values
    call = jax.ffi.ffi_call(PROMPT_ATTENTION, types, vmap_method="sequential")
    return call(*operands)[0][:, :new].astype(dtype)
