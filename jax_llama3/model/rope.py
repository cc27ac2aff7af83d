"""Rotary position embedding (arXiv:2104.09864), half-split, with Llama 3.1's scaling."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .config import Config, RopeScaling


def rope_frequencies(config: Config) -> np.ndarray:
    """Radians per position of each of the H / 2 pairs, float32, computed on the host."""
    # Each step is rounded to float32 because the published models were trained with, and the
    # references compute, exactly these: at position 100,000 one ulp is an angle of 0.006.
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.power(np.float64(config.rope_theta), exponents).astype(np.float32)
    frequencies = np.float32(1) / powers
    if config.rope_scaling is None:
        return frequencies
    return _scale(frequencies, config.rope_scaling)


def _scale(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Slow pairs turn `factor` times slower, fast pairs are kept, those between are blended.

    A pair is slow when fewer than `low_freq_factor` of its turns fit in the original context and
    fast when more than `high_freq_factor` do.
    """
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    wavelengths = np.float32(2 * np.pi) / frequencies
    turns = np.float32(scaling.original_max_seq_len) / wavelengths
    kept = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    factor = np.float32(scaling.factor)
    return (np.float32(1) - kept) * frequencies / factor + kept * frequencies


def rope_tables(
    positions: Int[Array, "B T"], config: Config
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    """Cosine and sine of every pair's angle (R = H / 2), in float32: bfloat16 cannot count to 257."""
    angles = positions.astype(jnp.float32)[..., None] * rope_frequencies(config)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T heads H"], cos: Float[Array, "B T R"], sin: Float[Array, "B T R"]
) -> Float[Array, "B T heads H"]:
    """Rotate the pair (x[i], x[i + H/2]) by its angle, in float32; returns x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
