"""Attention in double precision, for what the kernels compute."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_llama3.model.quantization import KV, dequantize, quantize_array


def draw(shape: tuple[int, ...], seed: int, dtype: object = jnp.float32) -> KV:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 2
    if dtype == jnp.int8:
        return quantize_array(jnp.asarray(values), 1)
    return jnp.asarray(values.astype(np.dtype(dtype)))


def wide(kv: KV) -> np.ndarray:
    return np.asarray(dequantize(kv, jnp.float32), np.float64)


def exact(q: jax.Array, k: KV, v: KV, positions: object) -> np.ndarray:
    """Of each query alone, over the slots up to its position."""
    return mixed(q, k, wide(v), positions)


def mixed(q: jax.Array, k: KV, values: np.ndarray, positions: object) -> np.ndarray:
    """The values [B S K H] by the weights of each query."""
    wide_q, wide_k = wide(q), wide(k)
    out = np.zeros(q.shape)
    for row, token in np.ndindex(q.shape[:2]):
        used = slice(0, int(np.asarray(positions)[row, token]) + 1)
        for head in range(q.shape[2]):
            group = head // (q.shape[2] // k.shape[2])
            scores = wide_k[row, used, group] @ wide_q[row, token, head] / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[row, token, head] = weights / weights.sum() @ values[row, used, group]
    return out
