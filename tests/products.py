"""What is asked of every kernel that multiplies by weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_llama3.kernels.cpu.ops import NUMBA
from jax_llama3.model.linear import linear


def draw(shape: tuple[int, ...], dtype: object, seed: int = 0) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal(shape) * 20
    return jnp.asarray(values.astype(np.float32).astype(np.dtype(dtype)))


def exact(x: jax.Array, weight: jax.Array) -> np.ndarray:
    return wide(x) @ wide(weight).T


def wide(array: jax.Array) -> np.ndarray:
    return np.asarray(array.astype(jnp.float32), np.float64)


def check_sums(found: jax.Array, x: jax.Array, weight: jax.Array) -> None:
    bound = np.abs(wide(x)) @ np.abs(wide(weight)).T
    assert np.all(np.abs(found - exact(x, weight)) <= 1e-6 * bound)


def check_derivatives(x: jax.Array, weight: jax.Array) -> None:
    """Gradients and batches of float32 x [B T D] and weight [F D] are those of the product."""
    product = partial(linear, "BTD,FD->BTF", products=NUMBA.products)

    def loss(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(product(x, weight) ** 2)

    gradient = jax.grad(loss, argnums=(0, 1))(x, weight)
    expected = jax.grad(lambda x, w: jnp.sum((x @ w.T) ** 2), argnums=(0, 1))(x, weight)
    for found, wanted in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    many = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(
        jax.vmap(product, (0, None))(many, weight)[1], 2 * (x @ weight.T), rtol=1e-4
    )


def check_shards(rows: int, dtype: object) -> None:
    """In `shard_map` the product varies by device where x or the weight does."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    x, weight = draw((rows, 64), dtype), draw((32, 64), dtype, 1)
    product = partial(linear, "MC,OC->MO", dtype=jnp.float32, products=NUMBA.products)
    for each, places, place in (
        ((jnp.concatenate([x, x]), weight), (P("x"), P()), P("x")),
        ((x, weight), (P(), P("x")), P(None, "x")),
    ):
        split = jax.jit(jax.shard_map(product, mesh=mesh, in_specs=places, out_specs=place))
        check_sums(split(*each), *each)
