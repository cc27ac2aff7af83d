"""The kernel for the attention of many queries: each one's softmax over the slots it may look at."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from concurrency import check_threads
from deferred import deferred
from processors import FEWER, run_with_features
from queries import draw, exact, mixed, wide
from random_models import TINY, sharp_params

from jax_llama3 import init_cache
from jax_llama3.decoding.programs import choose_ops, lower_with, read_tokens
from jax_llama3.kernels.cpu.ops import NUMBA
from jax_llama3.kernels.cpu.prefill_attention import prefill_attention, serves_prefill_attention
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.ops import PLAIN
from jax_llama3.model.taps import no_tap

pytest.importorskip("numba")
tile_code = pytest.importorskip("jax_llama3.kernels.cpu.compiled.tiles")
assert has_kernels()
if not tile_code.HAS_FLOATS:
    pytest.skip("a processor without fused multiply-add", allow_module_level=True)
jitted = jax.jit(prefill_attention)
BFLOAT16, FLOAT32, INT8 = jnp.bfloat16, jnp.float32, jnp.int8


def places(starts: list[int], tokens: int) -> jax.Array:
    return jnp.asarray(np.array(starts)[:, None] + np.arange(tokens))


def check(found: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, positions: object) -> None:
    wanted = exact(q, k, v, positions)
    magnitude = mixed(q, k, np.abs(wide(v)), positions)
    bound = 1e-5 * magnitude
    if q.dtype == BFLOAT16:  # each weight and then the result is rounded to 8 bits
        bound += 2.0**-8 * (magnitude + np.abs(wanted))
    assert np.all(np.abs(wide(found) - wanted) <= bound)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(
    ("heads", "tokens", "capacity", "starts"),
    [
        ((4, 2, 32), 16, 16, [0]),
        ((9, 3, 64), 40, 70, [0, 5, 30]),  # ends within a tile, a panel and a pack
        ((6, 6, 32), 9, 300, [0, 254, 291]),  # on both sides of a block's end
        ((8, 1, 128), 33, 1000, [900]),
        ((4, 4, 96), 17, 530, [500, 0]),
    ],
)
def test_values_are_those_of_double_precision(
    dtype: object, heads: tuple[int, int, int], tokens: int, capacity: int, starts: list[int]
) -> None:
    n_heads, kv_heads, width = heads
    rows = len(starts)
    q = draw((rows, tokens, n_heads, width), 0, dtype)
    k, v = (draw((rows, capacity, kv_heads, width), seed, dtype) for seed in (1, 2))
    positions = places(starts, tokens)
    check(jitted(q, k, v, positions), q, k, v, positions)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_positions_may_come_in_any_order(dtype: object) -> None:
    q, k = draw((1, 24, 2, 32), 0, dtype), draw((1, 600, 1, 32), 1, dtype)
    positions = jnp.asarray(np.random.default_rng(0).permutation(600)[None, :24])
    check(jitted(q, k, k, positions), q, k, k, positions)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("start", [0, 40, 500])
def test_what_is_not_used_is_not_read_and_what_is_counts(dtype: object, start: int) -> None:
    q = draw((2, 16, 4, 32), 0, dtype)
    k, v = (draw((2, 600, 2, 32), seed, dtype) for seed in (1, 2))
    positions = places([start, start], 16)
    clean = np.asarray(jitted(q, k, v, positions))
    stale = jnp.arange(600)[None, :, None, None] > start + 15
    stale_k, stale_v = (jnp.where(stale, jnp.nan, each) for each in (k, v))
    np.testing.assert_array_equal(jitted(q, stale_k, stale_v, positions), clean)
    spoilt = k.at[1, start + 9, 1].set(jnp.nan)  # of the second key/value head: heads 2 and 3
    found = np.array(jitted(q, spoilt, v, positions))
    assert np.isnan(found[1, 9:, 2:]).all()
    found[1, 9:, 2:] = clean[1, 9:, 2:]
    np.testing.assert_array_equal(found, clean)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_query_has_the_same_values_in_every_company(dtype: object) -> None:
    q = draw((2, 64, 3, 64), 0, dtype)
    k, v = (draw((2, 400, 1, 64), seed, dtype) for seed in (1, 2))
    positions = places([300, 2], 64)
    together = np.asarray(jitted(q, k, v, positions))
    for row, first, last in ((0, 0, 8), (1, 8, 24), (1, 31, 60)):
        one, part = slice(row, row + 1), slice(first, last)
        alone = jitted(q[one, part], k[one], v[one], positions[one, part])
        np.testing.assert_array_equal(alone, together[one, part])


def test_scores_far_apart_leave_the_largest_alone() -> None:
    k = jnp.zeros((1, 400, 1, 32)).at[0, :, 0, 0].set(-jnp.arange(400.0) * 1000)
    v = jnp.broadcast_to(jnp.arange(400.0)[:, None, None], k.shape)
    q = jnp.zeros((1, 8, 2, 32)).at[..., 0].set(jnp.array([1.0, -1.0]))
    found = jitted(q, k, v, places([390], 8))
    np.testing.assert_array_equal(found[0, :, 0], np.zeros((8, 32)))
    np.testing.assert_array_equal(found[0, :, 1, 0], np.arange(390, 398))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_scores_of_minus_infinity_have_no_weight(dtype: object) -> None:
    q = jnp.full((1, 8, 2, 32), 1e20, dtype)
    k = jnp.where(jnp.arange(600)[None, :, None, None] < 300, -1e20, 0.0).astype(dtype)
    k, v = jnp.broadcast_to(k, (1, 600, 1, 32)), jnp.ones((1, 600, 1, 32), dtype)
    np.testing.assert_array_equal(jitted(q, k, v, places([500], 8)), np.ones(q.shape))
    one = NUMBA.attend(q[:, :1], k, v, jnp.array([[500]]))
    np.testing.assert_array_equal(one, np.ones((1, 1, 2, 32)))


@pytest.mark.parametrize("first", [-8, -20])
def test_a_negative_position_looks_at_nothing(first: int) -> None:
    q, k = draw((2, 16, 2, 32), 0), draw((2, 70, 2, 32), 1)
    found = np.asarray(jitted(q, k, k, places([first, 20], 16)))
    assert np.isnan(found[0, :-first]).all()
    assert np.isfinite(found[0, -first:]).all()
    assert np.isfinite(found[1]).all()


def test_positions_past_the_capacity_read_no_further() -> None:
    q, k = draw((1, 8, 2, 32), 0), draw((1, 70, 2, 32), 1)
    last = jitted(q, k, k, jnp.full((1, 8), 69))
    np.testing.assert_array_equal(jitted(q, k, k, places([500], 8)), last)


@pytest.mark.parametrize("dtypes", [(INT8, INT8), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16)])
def test_slots_of_other_dtypes_are_left_to_the_plain_form(dtypes: tuple[object, object]) -> None:
    q, positions = draw((1, 16, 2, 32), 0), places([20], 16)
    k, v = (draw((1, 70, 2, 32), seed, dtype) for seed, dtype in enumerate(dtypes))
    assert not serves_prefill_attention(q, k, v)
    found = NUMBA.attend(q, k, v, positions)
    np.testing.assert_allclose(found, exact(q, k, v, positions), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("tokens", "width"), [(7, 32), (16, 48)])
def test_other_shapes_are_left_to_the_plain_form(tokens: int, width: int) -> None:
    q, k = jnp.zeros((1, tokens, 2, width)), jnp.zeros((1, 70, 2, width))
    assert not serves_prefill_attention(q, k, k)


def test_calls_from_many_threads_do_not_disturb_each_other() -> None:
    k, last = draw((1, 600, 3, 64), 0, BFLOAT16), places([500], 40)
    queries = [draw((1, 40, 9, 64), seed, BFLOAT16) for seed in range(8)]
    check_threads(lambda q: jitted(q, k, k, last), queries)


@deferred
def test_gradients_and_batches_are_those_of_the_plain_form() -> None:
    q, k, v = draw((2, 8, 4, 32), 0), draw((2, 20, 2, 32), 1), draw((2, 20, 2, 32), 2)
    positions = places([3, 12], 8)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, attend: object) -> jax.Array:
        return jnp.sum(attend(q, k, v, positions) ** 2)  # type: ignore[operator]

    assert serves_prefill_attention(q, k, v)
    found = jax.grad(partial(loss, attend=NUMBA.attend), argnums=(0, 1, 2))(q, k, v)
    wanted = jax.grad(partial(loss, attend=PLAIN.attend), argnums=(0, 1, 2))(q, k, v)
    for each, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-4, atol=1e-5)
    many = jax.vmap(NUMBA.attend, (0, None, None, None))(jnp.stack([q, 2 * q]), k, v, positions)
    np.testing.assert_allclose(many[1], PLAIN.attend(2 * q, k, v, positions), rtol=1e-4, atol=1e-5)


@pytest.mark.xla_pin
def test_a_prompt_has_the_kernel_and_no_branches() -> None:
    config = replace(TINY, n_heads=4, n_kv_heads=2, head_dim=32)
    params = jax.eval_shape(lambda: sharp_params(0, config))
    cache = jax.eval_shape(lambda: init_cache(config, 1, 4096, FLOAT32))
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    programs: list[jax.stages.Lowered] = []
    ops = choose_ops(params, 1, 64)
    run = lower_with(programs.append)
    read_tokens(params, tokens, lengths, cache, config, no_tap, ops, run)
    _, layer, _ = programs
    compiled = layer.compile().as_text()
    assert compiled.count('custom_call_target="jax_llama3_prefill_attention"') == 1
    assert " conditional(" not in compiled


OTHER_PROCESSOR = """
import jax, jax.numpy as jnp, numpy as np
from jax_llama3.kernels.cpu.compiled import tiles
from jax_llama3.kernels.cpu.prefill_attention import prefill_attention, serves_prefill_attention
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.ops import PLAIN
assert has_kernels()
assert tiles.LANES == WIDTH and not tiles.HAS_PAIRS
draw = np.random.default_rng(0).standard_normal
q, k, v = draw((2, 20, 4, 32)), draw((2, 300, 2, 32)), draw((2, 300, 2, 32))
positions = jnp.arange(20) + jnp.array([[0], [270]])
for dtype in (jnp.float32, jnp.bfloat16):
    each = [jnp.asarray(array, dtype) for array in (q, k, v)]
    assert serves_prefill_attention(*each)
    found = prefill_attention(*each, positions)
    assert found.dtype == dtype
    wanted = PLAIN.attend(*[array.astype(jnp.float32) for array in each], positions)
    bound = 1e-5 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=bound, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("lanes", "features"), FEWER)
def test_processors_with_fewer_instructions_get_the_same_values(
    lanes: int, features: str, tmp_path: Path
) -> None:
    run_with_features(OTHER_PROCESSOR.replace("WIDTH", str(lanes)), features, tmp_path)
