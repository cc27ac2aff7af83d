"""Int8 in place of floats: of the weights, per output channel, and of a cache, per token and head."""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from .params import Params, named_leaves

_LARGEST = 127  # symmetric: -128 is not used
_SMALLEST = np.finfo(np.float32).tiny  # backends flush what is smaller to zero


class Quantized(NamedTuple):
    """Numbers values * scale. The contracted axes stand last, and the scale has the axes before them.

    A matrix wq [N H D] has a scale [N H], wo [D N H] one of [D], a cache's keys [B S K H] one of
    [B S K].
    """

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]  # float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Slots = Float[Array, "B S K H"] | Quantized  # a layer's keys or values in the cache


def quantize(params: Params) -> Params:
    """The same model with every matrix as int8 values and a float32 scale per output channel.

    Symmetric, for the weights alone: a channel's scale is its largest |w| / 127, so no weight moves
    by more than half of that. Norms stay, and their dtype is that of the activations. Works under jit
    and `jax.eval_shape`. A tree that is quantised already raises ValueError.
    """
    if is_quantized(params):
        raise ValueError("the weights are quantised already")
    leaves = [
        leaf if len(leaf.shape) == 1 else quantize_array(leaf, 2 if name.endswith("wo") else 1)
        for name, leaf in named_leaves(params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def quantize_array(array: Any, contracted: int, xp: ModuleType = jnp) -> Quantized:
    """Int8 with one scale for each slice of the last `contracted` axes, ties to even.

    The row 0.5 -1.27 0.254 has the scale 0.01 and the values 50 -127 25. `xp` is the library
    that computes it: with NumPy and with jax.numpy the result is the same to the bit.
    """
    wide = array.astype(np.float32)
    axes = tuple(range(-contracted, 0))
    largest = xp.abs(wide).max(axis=axes, keepdims=True)
    # Products with reciprocals: XLA turns such quotients into them, and the last bit differs.
    scale = largest * np.float32(1 / _LARGEST)
    # Weights next to nothing count as zero. NaN stays NaN.
    scale = xp.where(scale < _SMALLEST, np.float32(0), scale)
    inverse = np.float32(1) / xp.where(scale == 0, np.float32(np.inf), scale)
    values = xp.rint(wide * inverse).astype(np.int8)
    return Quantized(values, scale.reshape(array.shape[:-contracted]))


def dequantize(array: Float[Array, "..."] | Quantized, dtype: Any) -> Float[Array, "..."]:
    """The numbers in `dtype`, computed in float32; an array that is not quantised is cast."""
    if not isinstance(array, Quantized):
        return array.astype(dtype)
    contracted = array.values.ndim - array.scale.ndim
    scale = array.scale.reshape(array.scale.shape + (1,) * contracted)
    return (array.values.astype(jnp.float32) * scale).astype(dtype)


def is_quantized(params: Params) -> bool:
    """Whether any matrix is int8."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    return any(isinstance(leaf, Quantized) for leaf in leaves)


def activation_dtype(params: Params) -> Any:
    """The dtype that the activations of a model have, and a cache for it by default."""
    # A checkpoint may keep its norms in float32 beside narrower matrices.
    embedding = params.embedding
    return params.norm.dtype if isinstance(embedding, Quantized) else embedding.dtype
