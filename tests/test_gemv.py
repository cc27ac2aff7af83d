"""The kernel for a few rows: exact sums for every shape and dtype, from any thread, differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from concurrency import check_threads
from products import check_derivatives, check_shards, check_sums, draw, exact

from jax_llama3.kernels.cpu.gemv import gemv
from jax_llama3.kernels.cpu.registration import has_kernels

pytest.importorskip("numba")
assert has_kernels()
jitted = jax.jit(gemv)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.float32])
@pytest.mark.parametrize(
    "shape", [(1, 1, 2), (2, 3, 6), (1, 5, 4098), (2, 203, 4098), (3, 2049, 96), (1, 4099, 1026)]
)
def test_sums_are_those_of_double_precision(dtype: object, shape: tuple[int, int, int]) -> None:
    rows, outputs, width = shape
    x, weight = draw((rows, width), jnp.float32), draw((outputs, width), dtype, 1)
    (found,) = jitted(x, (weight,))
    check_sums(found, x, weight)


def test_weights_of_different_sizes_and_dtypes_are_multiplied_in_one_call() -> None:
    x = draw((2, 64), jnp.float32)
    dtypes = [jnp.bfloat16, jnp.int8, jnp.float32, jnp.bfloat16]
    weights = tuple(draw((1 + 700 * i, 64), dtype, i) for i, dtype in enumerate(dtypes))
    for found, weight in zip(jitted(x, weights), weights, strict=True):
        np.testing.assert_allclose(found, exact(x, weight), rtol=1e-4, atol=1e-2)


def test_calls_from_many_threads_do_not_disturb_each_other() -> None:
    rows = [draw((1, 96), jnp.float32, seed) for seed in range(8)]
    weight = draw((3000, 96), jnp.bfloat16)
    check_threads(lambda x: jitted(x, (weight,))[0], rows)


def test_gradients_and_batches_are_those_of_the_product() -> None:
    check_derivatives(draw((2, 1, 8), jnp.float32), draw((5, 8), jnp.float32, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_and_weights_may_be_split_among_devices(dtype: object) -> None:
    check_shards(1, dtype)
