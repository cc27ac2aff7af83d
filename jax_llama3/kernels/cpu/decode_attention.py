"""Attention of one query per row over the filled part of a cache, on a CPU: an optional kernel.

How much is filled is read at run time, so one compilation serves every length, and a long row is
divided among all threads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...model.quantization import KV, Quantized
from .calls import result_type, with_attention_derivatives
from .registration import DECODE_ATTENTION

_DTYPES = ("bfloat16", "int8", "float32")


def serves_decode_attention(q: Any, k: KV, v: KV) -> bool:
    """Whether the kernel takes q [B 1 N H] and a cache of these dtypes and head dim."""
    stored = {each.values.dtype if isinstance(each, Quantized) else each.dtype for each in (k, v)}
    names = {jnp.dtype(dtype).name for dtype in stored}
    return q.shape[1] == 1 == len(names) and names <= {*_DTYPES} and q.shape[3] % 2 == 0


@with_attention_derivatives
def decode_attention(
    q: Float[Array, "B 1 N H"], k: KV, v: KV, positions: Int[Array, "B 1"]
) -> Float[Array, "B 1 N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys up to each row's position, all of it in float32.

    Values within a factor S of the largest float32 may overflow.
    """
    scales = []
    if isinstance(k, Quantized) and isinstance(v, Quantized):
        scales = [k.scale.astype(jnp.float32), v.scale.astype(jnp.float32)]
        k, v = k.values, v.values
    operands = [q.astype(jnp.float32), positions[:, 0].astype(jnp.int32), k, v, *scales]
    type_ = result_type(operands[0], operands[1:])
    call = jax.ffi.ffi_call(DECODE_ATTENTION, type_, vmap_method="sequential")
    return call(*operands).astype(q.dtype)
