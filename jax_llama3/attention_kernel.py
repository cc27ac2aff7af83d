"""Attention of one query per row over a cache's used slots, on a CPU: an optional kernel.

How many slots are used is read at run time, so nothing is compiled for any number of them, and a long
row is shared out to all threads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .kernels import ATTENTION, has_kernels
from .quantization import Quantized, Slots

_DTYPES = ("bfloat16", "int8", "float32")


def has_attention_kernel(dtype: Any, head_dim: int) -> bool:
    """Whether the kernel can be had and takes slots of this dtype and head dim."""
    return jnp.dtype(dtype).name in _DTYPES and head_dim % 2 == 0 and has_kernels()


def attend_one(
    q: Float[Array, "B 1 N H"], k: Slots, v: Slots, positions: Int[Array, " B"]
) -> Float[Array, "B 1 N H"]:
    """softmax(q k^T / sqrt(H)) v over the slots up to each row's position, all of it in float32.

    It has no derivative of its own.
    """
    scales = []
    if isinstance(k, Quantized) and isinstance(v, Quantized):
        scales = [k.scale.astype(jnp.float32), v.scale.astype(jnp.float32)]
        k, v = k.values, v.values
    wide = q.astype(jnp.float32)
    call = jax.ffi.ffi_call(ATTENTION, jax.eval_shape(lambda: wide), vmap_method="sequential")
    return call(wide, positions.astype(jnp.int32), k, v, *scales).astype(q.dtype)
