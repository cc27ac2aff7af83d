"""The machine's two limits, measured: bytes read and floating point operations per second."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..decoding.programs import default_ops
from ..model.linear import linear

_READ_BYTES = 1 << 29  # far more than any cache holds


def bandwidth_probe() -> Callable[[], float]:
    """A function that measures, each time it is called, the bytes per second that can be read.

    It multiplies a 512 MB float32 matrix by a vector and takes its row maxima, and gives the faster
    of the two: a limit must not be low because one form of reading is slow.
    """
    width = 4096
    matrix = jnp.ones((_READ_BYTES // (4 * width), width), jnp.float32)
    vector = jnp.ones(width, jnp.float32)

    @jax.jit
    def product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
        return lax.dot_general(matrix, vector, (((1,), (0,)), ((), ())))

    @jax.jit
    def maxima(matrix: jax.Array, vector: jax.Array) -> jax.Array:
        del vector
        return jnp.max(matrix, axis=1)

    forms = (product, maxima)
    for form in forms:
        jax.block_until_ready(form(matrix, vector))
    return lambda: max(matrix.nbytes / _median_seconds(form, matrix, vector) for form in forms)


def peak_flops(dtype: Any, rows: int = 512) -> float:
    """Operations per second of this library's matrix product, 512 rows with a 4096 x 4096 weight."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (1, rows, 4096), dtype)
    weight = jax.random.normal(keys[1], (4096, 4096), dtype)
    products = default_ops(1, rows).products
    product = jax.jit(lambda x, weight: linear("BTD,FD->BTF", x, weight, products=products))
    jax.block_until_ready(product(x, weight))
    return 2 * rows * weight.size / _median_seconds(product, x, weight)


def _median_seconds(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """The median of three runs."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
