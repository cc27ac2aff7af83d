"""Attention in blocks, as a long prompt takes it on a CPU, is attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_llama3.kernels.cpu import attention as module
from jax_llama3.model.quantization import Quantized


def draw(shape: tuple[int, ...], seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def quantized(slots: jax.Array, seed: int) -> Quantized:
    scale = jnp.abs(draw(slots.shape[:3], seed)) / 127
    return Quantized(jnp.clip(jnp.round(slots * 40), -127, 127).astype(jnp.int8), scale)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    ("batch", "new", "n_heads", "n_kv_heads", "score_bytes"),
    [(1, 12, 6, 3, 1), (2, 16, 6, 2, 3000), (3, 7, 4, 4, 1000), (2, 24, 4, 1, 1 << 12)],
)
def test_blocks_give_what_attention_gives_at_once(
    batch: int,
    new: int,
    n_heads: int,
    n_kv_heads: int,
    score_bytes: int,
    narrow: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capacity = 40
    q = draw((batch, new, n_heads, 8), 0)
    k, v = (draw((batch, capacity, n_kv_heads, 8), seed) for seed in (1, 2))
    if narrow:
        k, v = quantized(k, 3), quantized(v, 4)
    depths = np.arange(batch)[:, None] * 5
    positions = jnp.asarray(depths + np.arange(new), jnp.int32)
    at_once = module.attend_whole(q, k, v, positions)
    assert batch * new * n_heads * capacity * 4 > score_bytes
    monkeypatch.setattr(module, "_SCORE_BYTES", score_bytes)
    in_blocks = module.attend_blocks(q, k, v, positions)
    np.testing.assert_allclose(in_blocks, at_once, rtol=1e-5, atol=1e-6)
    loops = str(jax.make_jaxpr(module.attend_blocks)(q, k, v, positions)).count("scan[")
    assert loops == 2
