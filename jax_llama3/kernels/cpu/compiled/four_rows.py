"""Arithmetic on four rows at a time, because a core reads four streams faster than one.

The rows are heads of keys or values in four slots of a cache. bfloat16 rows are read as words of two
numbers; the float32 operand beside them holds its even places and its odd places apart.
"""

import numpy as np
from numba import carray

from .compiler import compiled
from .memory import pointer
from .numbers import even_bfloat16, odd_bfloat16

_ZERO = np.float32(0)


@compiled
def four_rows(addresses, count, dtype):
    """The four arrays of `count` numbers that begin at these addresses."""
    return (
        carray(pointer(addresses[0]), (count,), dtype),
        carray(pointer(addresses[1]), (count,), dtype),
        carray(pointer(addresses[2]), (count,), dtype),
        carray(pointer(addresses[3]), (count,), dtype),
    )


@compiled
def dot_products(q, k, scales):
    """One query times four keys, each by its scale."""
    sum_0 = sum_1 = sum_2 = sum_3 = _ZERO
    for i in range(q.shape[0]):
        sum_0 += q[i] * k[0][i]
        sum_1 += q[i] * k[1][i]
        sum_2 += q[i] * k[2][i]
        sum_3 += q[i] * k[3][i]
    return sum_0 * scales[0], sum_1 * scales[1], sum_2 * scales[2], sum_3 * scales[3]


@compiled
def dot_products_bfloat16(even, odd, k):
    """One query, its even and odd places apart, times four keys of bfloat16."""
    sum_0 = sum_1 = sum_2 = sum_3 = _ZERO
    for i in range(even.shape[0]):
        sum_0 += even[i] * even_bfloat16(k[0][i]) + odd[i] * odd_bfloat16(k[0][i])
        sum_1 += even[i] * even_bfloat16(k[1][i]) + odd[i] * odd_bfloat16(k[1][i])
        sum_2 += even[i] * even_bfloat16(k[2][i]) + odd[i] * odd_bfloat16(k[2][i])
        sum_3 += even[i] * even_bfloat16(k[3][i]) + odd[i] * odd_bfloat16(k[3][i])
    return sum_0, sum_1, sum_2, sum_3


@compiled
def add_weighted(weights, v, scales, out):
    """Add four values to `out`, each by its weight and its scale."""
    weight_0, weight_1 = weights[0] * scales[0], weights[1] * scales[1]
    weight_2, weight_3 = weights[2] * scales[2], weights[3] * scales[3]
    for i in range(out.shape[0]):
        both = weight_0 * v[0][i] + weight_1 * v[1][i]
        out[i] += both + weight_2 * v[2][i] + weight_3 * v[3][i]


@compiled
def add_weighted_bfloat16(weights, v, even, odd):
    """Add four values of bfloat16, each by its weight, to an output whose even and odd places are apart."""
    weight_0, weight_1, weight_2, weight_3 = weights[0], weights[1], weights[2], weights[3]
    for i in range(even.shape[0]):
        both = weight_0 * even_bfloat16(v[0][i]) + weight_1 * even_bfloat16(v[1][i])
        even[i] += both + weight_2 * even_bfloat16(v[2][i]) + weight_3 * even_bfloat16(v[3][i])
        both = weight_0 * odd_bfloat16(v[0][i]) + weight_1 * odd_bfloat16(v[1][i])
        odd[i] += both + weight_2 * odd_bfloat16(v[2][i]) + weight_3 * odd_bfloat16(v[3][i])
