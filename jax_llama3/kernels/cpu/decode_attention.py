"""Attention of one query per row over a cache's used slots, on a CPU: an optional kernel.

How many slots are used is read at run time, so nothing is compiled for any number of them, and a long
row is shared out to all threads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...model.quantization import Quantized, Slots
from .registration import ATTENTION, has_kernels, result_type

_DTYPES = ("bfloat16", "int8", "float32")


def has_attention_kernel(dtype: Any, head_dim: int) -> bool:
    """Whether the kernel can be had and takes slots of this dtype and head dim."""
    return jnp.dtype(dtype).name in _DTYPES and head_dim % 2 == 0 and has_kernels()


def attend_one(
    q: Float[Array, "B 1 N H"], k: Slots, v: Slots, positions: Int[Array, " B"]
) -> Float[Array, "B 1 N H"]:
    """softmax(q k^T / sqrt(H)) v over the slots up to each row's position, all of it in float32.

    It has no derivative of its own. Values within a factor S of the largest float32 may overflow.
    """
    scales = []
    if isinstance(k, Quantized) and isinstance(v, Quantized):
        scales = [k.scale.astype(jnp.float32), v.scale.astype(jnp.float32)]
        k, v = k.values, v.values
    operands = [q.astype(jnp.float32), positions.astype(jnp.int32), k, v, *scales]
    type_ = result_type(operands[0], operands[1:])
    call = jax.ffi.ffi_call(ATTENTION, type_, vmap_method="sequential")
    return call(*operands).astype(q.dtype)
