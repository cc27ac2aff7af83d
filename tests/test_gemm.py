"""The kernel for many rows: exact sums for every shape and dtype, from any thread, differentiable."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from concurrency import check_threads
from deferred import deferred
from processors import FEWER, run_with_features
from products import check_derivatives, check_shards, check_sums, draw

from jax_llama3.kernels.cpu.gemm import gemm, serves_gemm
from jax_llama3.kernels.cpu.ops import NUMBA
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.linear import linear

pytest.importorskip("numba")
tile_code = pytest.importorskip("jax_llama3.kernels.cpu.compiled.tiles")
assert has_kernels()
if not tile_code.HAS_FLOATS:
    pytest.skip("a processor without fused multiply-add", allow_module_level=True)
jitted = jax.jit(gemm)
BFLOAT16, FLOAT32, INT8 = jnp.bfloat16, jnp.float32, jnp.int8
DTYPES = [
    (BFLOAT16, BFLOAT16),
    (BFLOAT16, INT8),
    (BFLOAT16, FLOAT32),
    (FLOAT32, FLOAT32),
    (FLOAT32, BFLOAT16),
    (FLOAT32, INT8),
]


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    "shape",
    # 1 to 11 panels of 16 rows, so tiles of every width; widths and outputs that end within a chunk
    [
        (1, 8, 32),
        (16, 24, 96),
        (31, 8, 64),
        (48, 56, 32),
        (64, 40, 1056),
        (80, 16, 32),
        (175, 264, 160),
    ],
)
def test_sums_are_those_of_double_precision(
    shape: tuple[int, int, int], dtypes: tuple[object, object]
) -> None:
    rows, outputs, width = shape
    x, weight = draw((rows, width), dtypes[0]), draw((outputs, width), dtypes[1], 1)
    (found,) = jitted(x, (weight,))
    check_sums(found, x, weight)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_weights_of_different_sizes_and_dtypes_are_multiplied_in_one_call(dtype: object) -> None:
    x = draw((50, 64), dtype)
    weights = tuple(
        draw((8 + 40 * i, 64), each, i) for i, each in enumerate([INT8, BFLOAT16, INT8])
    )
    for found, weight in zip(jitted(x, weights), weights, strict=True):
        check_sums(found, x, weight)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_a_row_is_the_same_in_every_company(dtypes: tuple[object, object]) -> None:
    x, weight = draw((160, 256), dtypes[0]), draw((72, 256), dtypes[1], 1)
    together = np.asarray(jitted(x, (weight,))[0])
    for first, last in ((0, 1), (7, 12), (100, 133), (159, 160)):
        np.testing.assert_array_equal(jitted(x[first:last], (weight,))[0], together[first:last])


@pytest.mark.parametrize("dtypes", DTYPES)
def test_what_is_no_number_stays_in_its_row(dtypes: tuple[object, object]) -> None:
    x, weight = draw((40, 64), dtypes[0]), draw((24, 64), dtypes[1], 1)
    x = x.at[3, 5].set(jnp.nan).at[20, 63].set(jnp.inf)
    found = np.asarray(jitted(x, (weight,))[0])
    assert np.isnan(found[3]).all()
    hit = np.asarray(weight[:, 63]) != 0
    assert np.isinf(found[20][hit]).all()
    assert np.isfinite(np.delete(found, [3, 20], axis=0)).all()


def test_calls_from_many_threads_do_not_disturb_each_other() -> None:
    prompts = [draw((40 + seed, 96), BFLOAT16, seed) for seed in range(8)]
    weight = draw((200, 96), INT8)
    check_threads(lambda x: jitted(x, (weight,))[0], prompts)


def test_gradients_and_batches_are_those_of_the_product() -> None:
    # Whole numbers, whose sums are exact in any order.
    x, weight = (
        jnp.round(draw((2, 20, 32), FLOAT32) / 10),
        jnp.round(draw((16, 32), FLOAT32, 1) / 10),
    )
    assert serves_gemm(x.reshape(40, 32), [weight])
    check_derivatives(x, weight)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_rows_and_weights_may_be_split_among_devices(dtype: object) -> None:
    check_shards(20, dtype)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (jnp.ones((16, 48)), jnp.ones((16, 48))),
        (jnp.ones((16, 32)), jnp.ones((12, 32))),
        (jnp.ones((16, 32), jnp.float16), jnp.ones((16, 32), jnp.float16)),
        (jnp.ones((11, 32)), jnp.ones((16, 32))),
        (jnp.ones((3, 32), BFLOAT16), jnp.ones((16, 32), BFLOAT16)),
    ],
)
def test_other_shapes_and_dtypes_are_left_to_xla(x: jax.Array, weight: jax.Array) -> None:
    assert not serves_gemm(x, [weight])
    found = linear("MC,OC->MO", x, weight, products=NUMBA.products)
    np.testing.assert_array_equal(found, np.full((len(x), len(weight)), x.shape[1]))


def test_rows_without_numbers_are_left_to_xla() -> None:
    assert not serves_gemm(jnp.ones((16, 0)), [jnp.ones((16, 0))])


PROMPTS = """
import sys
import jax.numpy as jnp, numpy as np
from jax_llama3 import Config, init_cache, init_params, prefill
import jax
config = Config(vocab_size=64, dim=64, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=64,
                norm_eps=1e-5, rope_theta=1e4, max_seq_len=64)
params = init_params(jax.random.key(0), config, jnp.float32)
for length, imported in ((16, False), (17, True)):
    cache = init_cache(config, 1, 64, jnp.float32)
    prefill(params, np.ones((1, length), np.int32), np.array([length]), cache, config)
    assert ("numba" in sys.modules) == imported, length
"""


@deferred
def test_a_short_prompt_does_not_wait_for_the_kernel() -> None:
    subprocess.run([sys.executable, "-c", PROMPTS], check=True)


OTHER_PROCESSOR = """
import jax.numpy as jnp, numpy as np
from jax_llama3.kernels.cpu.compiled import tiles
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.kernels.cpu.gemm import serves_gemm, gemm
assert has_kernels()
assert tiles.LANES == WIDTH and not tiles.HAS_PAIRS
whole = np.random.default_rng(0).integers(-100, 100, (3, 80, 64))
x = jnp.asarray(whole[0], jnp.bfloat16)
weights = [jnp.asarray(whole[1], jnp.bfloat16), jnp.asarray(whole[2], jnp.int8), jnp.asarray(whole[2], jnp.float32)]
assert serves_gemm(x, weights)
for found, weight in zip(gemm(x, tuple(weights)), (whole[1], whole[2], whole[2])):
    np.testing.assert_array_equal(found, whole[0] @ weight.T)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("lanes", "features"), FEWER)
def test_processors_with_fewer_instructions_get_the_same_sums(
    lanes: int, features: str, tmp_path: Path
) -> None:
    run_with_features(OTHER_PROCESSOR.replace("WIDTH", str(lanes)), features, tmp_path)
