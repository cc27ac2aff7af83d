"""What the calls of all kernels have in common: the types of their results, and their derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...model.ops import PLAIN


def result_type(like: Any, others: Sequence[Any]) -> jax.ShapeDtypeStruct:
    """The type of `like`, but varying by device in `shard_map` where any of the others does too."""
    return jax.eval_shape(_sum_with, like, others)


def _sum_with(like: Array, others: Sequence[Array]) -> Array:
    return sum((jnp.sum(each).astype(like.dtype) for each in others), like)


def product_types(x: Any, weights: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Of x [M C] times each weight [O C] in float32; what varies by device in `shard_map` stays so."""
    return [jax.eval_shape(_wide_product, x, weight) for weight in weights]


def _wide_product(x: Array, weight: Array) -> Array:
    return x.astype(jnp.float32) @ weight.astype(jnp.float32).T


def with_product_derivatives(
    products: Callable[..., tuple[Array, ...]],
) -> Callable[..., tuple[Array, ...]]:
    """Give a kernel for the products of x [M C] with weights [O C] the derivatives of products."""
    function = jax.custom_jvp(products)

    @function.defjvp
    def tangents(primals: tuple, changes: tuple) -> tuple[tuple, tuple]:
        (x, weights), (x_change, weight_changes) = primals, changes
        found = []
        for weight, weight_change in zip(weights, weight_changes, strict=True):
            change = _wide_product(x_change, weight)
            if weight.dtype != jnp.int8:  # whole numbers have no tangent
                change += _wide_product(x, weight_change)
            found.append(change)
        return function(*primals), tuple(found)

    return function


def with_attention_derivatives(attend: Callable[..., Array]) -> Callable[..., Array]:
    """Give a kernel for attention the derivatives of the plain form."""
    function = jax.custom_jvp(attend)
    function.defjvp(lambda primals, tangents: jax.jvp(PLAIN.attend, primals, tangents))
    return function
