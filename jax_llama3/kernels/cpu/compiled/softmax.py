"""The softmax of a block of scores, which both attentions share: its maximum, then weights and their sum."""

import numpy as np

from .compiler import compiled
from .numbers import bits_of, exp, float_of

_ZERO = np.float32(0)
_MIN_FINITE = np.finfo(np.float32).min


@compiled
def row_max(scores):
    """The largest score, but no less than the least finite float32.

    So exp(score - maximum) is 0, not NaN, where every score is -inf. A NaN is the largest or is not
    counted. Scores are compared as integers of the same order, because LLVM makes vectors of the
    maximum of integers, but not of that of floats.
    """
    largest = _in_order(np.int32(bits_of(_MIN_FINITE)))
    for i in range(scores.shape[0]):
        largest = max(largest, _in_order(np.int32(bits_of(scores[i]))))
    return float_of(np.uint32(_in_order(largest)))


@compiled
def _in_order(bits):
    """The bits of a float32 as an integer of the same order, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@compiled
def exp_row(scores, maximum, scale):
    """Scores become exp((score - maximum) * scale) in place; returns their sum."""
    total = _ZERO
    for i in range(scores.shape[0]):
        weight = exp((scores[i] - maximum) * scale)
        scores[i] = weight
        total += weight
    return total
