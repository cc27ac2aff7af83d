"""RoPE against angles and a scaling that can be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from random_models import TINY, replace, sharp_params

from jax_llama3 import RopeScaling, forward, init_cache
from jax_llama3.model.ops import Ops
from jax_llama3.model.rope import apply_rope, rope_frequencies, rope_tables


def test_a_quarter_turn() -> None:
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    quarter = jnp.full((1, 1, 2), np.pi / 2, jnp.float32)
    turned = apply_rope(x, jnp.cos(quarter), jnp.sin(quarter))
    np.testing.assert_allclose(turned.reshape(-1), [-3, -4, 1, 2], atol=1e-6)


def test_frequencies_of_theta_100_and_four_pairs() -> None:
    config = replace(TINY, head_dim=8, rope_theta=100.0, rope_scaling=None)
    expected = [1, 100**-0.25, 0.1, 100**-0.75]
    np.testing.assert_allclose(rope_frequencies(config), expected, rtol=1e-7)


def test_scaling_keeps_fast_pairs_slows_slow_ones_and_blends_between() -> None:
    # Turns in 64 positions: 10.2, 3.2, 1.02, 0.32; above 4 is fast, below 1 slow.
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    config = replace(TINY, head_dim=8, rope_theta=100.0, rope_scaling=scaling)
    plain = rope_frequencies(replace(config, rope_scaling=None))
    turns = 64 * plain / (2 * np.pi)
    kept = (turns[1:3] - 1) / 3
    expected = [plain[0], *(kept * plain[1:3] + (1 - kept) * plain[1:3] / 8), plain[3] / 8]
    np.testing.assert_allclose(rope_frequencies(config), expected, rtol=1e-6)


def test_two_configs_never_share_a_table() -> None:
    positions = jnp.arange(4)[None]
    for theta in (10000.0, 500000.0, 10000.0):
        config = replace(TINY, rope_theta=theta, rope_scaling=None)
        cos, _ = rope_tables(positions, config)
        np.testing.assert_allclose(cos[0, 3], np.cos(3 * rope_frequencies(config)), atol=1e-6)


@pytest.mark.parametrize("position", [255, 257, 8191, 131071])
def test_angles_stay_exact_at_far_positions(position: int) -> None:
    config = replace(TINY, head_dim=128, rope_theta=500000.0, rope_scaling=None)
    cos, sin = jax.jit(rope_tables, static_argnums=1)(jnp.array([[position]]), config)
    angles = np.float32(position) * rope_frequencies(config)
    np.testing.assert_allclose(cos[0, 0], np.cos(angles.astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(sin[0, 0], np.sin(angles.astype(np.float64)), atol=1e-6)


def test_a_narrow_input_is_rotated_in_float32_and_rounded_once() -> None:
    config = replace(TINY, head_dim=64, rope_scaling=None)
    x = normal(0, (1, 200, 3, 64), jnp.bfloat16)
    cos, sin = rope_tables(jnp.arange(200)[None], config)
    first, second = np.split(np.asarray(x, np.float64), 2, axis=-1)
    c, s = (np.asarray(table, np.float64)[:, :, None] for table in (cos, sin))
    exact = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
    rounded = jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)
    assert np.mean(np.asarray(apply_rope(x, cos, sin) == rounded)) > 0.99


def test_shifting_all_positions_changes_no_logit(ops: Ops | None) -> None:
    params = sharp_params(5, TINY)
    tokens = np.arange(20)[None]
    expected, _ = forward(params, tokens, TINY, ops=ops)
    seen = {}

    def tap(name: str, array: jax.Array) -> jax.Array:
        # Slots before the shifted text hold nothing: hide them from the scores.
        if name.endswith("scores"):
            seen[name] = array
            return jnp.where(jnp.arange(array.shape[-1])[None, None, None] < 100, -jnp.inf, array)
        return array

    cache = init_cache(TINY, 1, 128, jnp.float32)._replace(lengths=jnp.array([100]))
    shifted, _ = forward(params, tokens, TINY, cache, tap=tap, ops=ops)
    np.testing.assert_allclose(shifted, expected, rtol=0, atol=1e-4)
