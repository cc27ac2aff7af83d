"""Random arrays drawn by numpy: JAX would compile a program for each shape and dtype."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, shape: tuple[int, ...], dtype: object = jnp.float32) -> jax.Array:
    """Standard normal numbers, drawn in float32 and rounded to the dtype."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(values.astype(np.dtype(dtype)))
