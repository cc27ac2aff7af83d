"""The matrix product of an activation with weights, whose contracted axes stand last in both."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .quantization import Quantized

Weight = Float[Array, "..."] | Quantized
# x [M C] times each weight [O C] over C: [M O] in float32.
Products = Callable[[Array, tuple[Weight, ...]], tuple[Array, ...]]


def products(x: Float[Array, "M C"], weights: tuple[Weight, ...]) -> tuple[Array, ...]:
    """x times each weight [O C] over C, summed in float32: the plain form of `Ops.products`."""
    return tuple(_product(x, weight) for weight in weights)


def linear(
    spec: str,
    x: Float[Array, "..."],
    weight: Weight,
    dtype: Any = None,
    *,
    products: Products = products,
) -> Float[Array, "..."]:
    """`jnp.einsum(spec, x, weight)` for a weight whose contracted axes stand last in both operands.

    It sums in float32 and returns `dtype` (default: x's), for example
    `linear("BTD,NHD->BTNH", x, wq)`. Another contraction raises ValueError.
    """
    return linears(x, [(spec, weight)], dtype, products=products)[0]


def linears(
    x: Float[Array, "..."],
    weights: Sequence[tuple[str, Weight]],
    dtype: Any = None,
    *,
    products: Products = products,
) -> list[Float[Array, "..."]]:
    """`linear` of one x with several weights, which `products` may compute as one operation."""
    axes = [_kept_axes(spec) for spec, _ in weights]
    batch, contracted = axes[0][0], x.shape[axes[0][0] :]
    width = math.prod(contracted)
    flat = tuple(_flatten(weight, width) for _, weight in weights)
    found = products(x.reshape(-1, width), flat)
    return [
        product.reshape(x.shape[:batch] + weight.shape[:out]).astype(dtype or x.dtype)
        for product, (_, weight), (_, out) in zip(found, weights, axes, strict=True)
    ]


def _kept_axes(spec: str) -> tuple[int, int]:
    """How many axes of x, and how many of the weight, are not contracted."""
    operands, result = spec.split("->")
    left, right = operands.split(",")
    contracted = "".join(letter for letter in right if letter not in result)
    batch, out = left.removesuffix(contracted), right.removesuffix(contracted)
    if not contracted or (batch + contracted, batch + out) != (left, result):
        raise ValueError(f"{spec!r} does not contract the last axes of both operands")
    return len(batch), len(out)


def _flatten(weight: Weight, width: int) -> Weight:
    if isinstance(weight, Quantized):
        return Quantized(weight.values.reshape(-1, width), weight.scale.reshape(-1))
    return weight.reshape(-1, width)


def _product(x: Float[Array, "M C"], weight: Weight) -> Float[Array, "M O"]:
    if isinstance(weight, Quantized):
        # Every float dtype holds int8 exactly. A GPU widens it inside the product.
        return dot(x, weight.values.astype(x.dtype)) * weight.scale[None]
    return dot(*in_one_dtype(x, weight))


def in_one_dtype(x: Array, weight: Array) -> tuple[Array, Array]:
    """Both as they are if their dtypes agree, else in float32, which holds every other one exactly."""
    if x.dtype == weight.dtype:
        return x, weight
    return x.astype(jnp.float32), weight.astype(jnp.float32)


def dot(x: Float[Array, "M C"], weight: Float[Array, "O C"]) -> Float[Array, "M O"]:
    """x times the transposed weight, in float32."""
    # HIGHEST keeps a GPU from rounding float32 operands to TF32; narrower operands ignore it.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, axes, precision=precision, preferred_element_type=jnp.float32)
