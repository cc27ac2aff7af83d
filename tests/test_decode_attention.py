"""The attention kernel: one query's exact softmax over the used slots, whatever the others hold."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from concurrency import check_threads
from deferred import deferred
from queries import draw, exact
from random_models import TINY, sharp_params

from jax_llama3 import init_cache
from jax_llama3.decoding.programs import choose_ops, decode_compiled
from jax_llama3.kernels.cpu.decode_attention import decode_attention
from jax_llama3.kernels.cpu.ops import NUMBA
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.taps import no_tap

pytest.importorskip("numba")
assert has_kernels()
jitted = jax.jit(decode_attention)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize(
    ("heads", "positions"),
    [
        ((9, 3, 64), [0, 2]),
        ((4, 4, 2), [62, 63, 64]),
        ((6, 1, 128), [65, 126]),
        ((8, 2, 16), [299, 1, 127]),
    ],
)
def test_values_are_those_of_double_precision(
    dtype: object, heads: tuple[int, int, int], positions: list[int]
) -> None:
    n_heads, kv_heads, width = heads
    rows = len(positions)
    q = draw((rows, 1, n_heads, width), 0)
    k, v = (draw((rows, 300, kv_heads, width), seed, dtype) for seed in (1, 2))
    found = jitted(q, k, v, jnp.asarray(positions)[:, None])
    np.testing.assert_allclose(
        found, exact(q, k, v, np.array(positions)[:, None]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("position", [0, 5, 63, 64, 130])
def test_what_is_not_used_is_not_read_and_what_is_counts(dtype: object, position: int) -> None:
    q = draw((1, 1, 4, 8), 0)
    k, v = (draw((1, 200, 2, 8), seed, dtype) for seed in (1, 2))
    clean = jitted(q, k, v, jnp.array([[position]]))
    stale = jnp.arange(200)[None, :, None, None] > position
    stale_k, stale_v = (jnp.where(stale, jnp.nan, each) for each in (k, v))
    np.testing.assert_array_equal(jitted(q, stale_k, stale_v, jnp.array([[position]])), clean)
    spoilt = k.at[0, position, 1].set(jnp.nan)  # of the second key/value head: heads 2 and 3
    found = np.asarray(jitted(q, spoilt, v, jnp.array([[position]])))[0, 0]
    assert np.isnan(found[2:]).all()
    np.testing.assert_array_equal(found[:2], np.asarray(clean)[0, 0, :2])


def test_scores_far_apart_leave_the_largest_alone() -> None:
    k = jnp.zeros((1, 100, 1, 2)).at[0, :, 0, 0].set(-jnp.arange(100.0) * 1000)
    v = jnp.arange(200.0).reshape(1, 100, 1, 2)
    q = jnp.array([[[[1.0, 0.0], [-1.0, 0.0]]]])
    found = jitted(q, k, v, jnp.array([[99]]))
    np.testing.assert_array_equal(found[0, 0], [[0.0, 1.0], [198.0, 199.0]])


def test_a_position_past_the_capacity_reads_no_further() -> None:
    q, k = draw((1, 1, 2, 4), 0), draw((1, 70, 2, 4), 1)
    np.testing.assert_array_equal(
        jitted(q, k, k, jnp.array([[500]])), jitted(q, k, k, jnp.array([[69]]))
    )


def test_keys_and_values_of_different_dtypes_are_left_to_the_plain_form() -> None:
    q, k = draw((1, 1, 2, 4), 0), draw((1, 70, 2, 4), 1, jnp.bfloat16)
    v = draw((1, 70, 2, 4), 2)
    found = NUMBA.attend(q, k, v, jnp.array([[69]]))
    np.testing.assert_allclose(found, exact(q, k, v, [[69]]), rtol=0.05, atol=0.05)


def test_calls_from_many_threads_do_not_disturb_each_other() -> None:
    k = draw((1, 2000, 3, 64), 0, jnp.bfloat16)
    queries = [draw((1, 1, 9, 64), seed) for seed in range(8)]
    last = jnp.array([[1999]])
    check_threads(lambda q: jitted(q, k, k, last), queries)


@deferred
def test_gradients_and_batches_are_those_of_the_plain_form() -> None:
    q, k, v = draw((2, 1, 4, 8), 0), draw((2, 20, 2, 8), 1), draw((2, 20, 2, 8), 2)
    positions = jnp.array([[3], [19]])

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, attend: object) -> jax.Array:
        return jnp.sum(attend(q, k, v, positions) ** 2)  # type: ignore[operator]

    def two(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array) -> jax.Array:
        # The same query twice, so that the plain form for several tokens is taken.
        twice = jnp.concatenate([q, q], axis=1)
        both = jnp.concatenate([positions, positions], axis=1)
        return NUMBA.attend(twice, k, v, both)[:, :1]

    for form in (NUMBA.attend, two):
        assert np.isfinite(loss(q, k, v, form))
    found = jax.grad(partial(loss, attend=NUMBA.attend), argnums=(0, 1, 2))(q, k, v)
    wanted = jax.grad(partial(loss, attend=two), argnums=(0, 1, 2))(q, k, v)
    for each, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-4, atol=1e-5)
    many = jax.vmap(NUMBA.attend, (0, None, None, None))(jnp.stack([q, 2 * q]), k, v, positions)
    np.testing.assert_allclose(many[1], NUMBA.attend(2 * q, k, v, positions), rtol=1e-5)


@pytest.mark.xla_pin
def test_a_decode_step_has_the_kernel_and_no_branches() -> None:
    params = jax.eval_shape(lambda: sharp_params(0, TINY))
    cache = jax.eval_shape(lambda: init_cache(TINY, 1, 4096, jnp.float32))
    tokens = jax.ShapeDtypeStruct((1,), jnp.int32)
    ops = choose_ops(params, 1, 1)
    text = decode_compiled.lower(params, tokens, cache, TINY, no_tap, ops).compile().as_text()
    assert text.count('custom_call_target="jax_llama3_decode_attention"') == TINY.n_layers
    # None for the attention, whatever the capacity; the one there is keeps the sines apart.
    (branches,) = re.findall(r" conditional\(.*", text)
    assert "jit(embed)" in branches
