"""What the kernels compute with single numbers: e to their power, and other formats of them."""

import numpy as np
from numba import carray

from .ffi import BFLOAT16, INT8, bits_of, compiled, compiled_exactly, float_of, floats, pointer

_ZERO, _ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(-87)  # e to what is less is not a normal number
_LEAST_FINITE = np.finfo(np.float32).min
_HALF, _LOG2_E = np.float32(0.5), np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# 1/2! to 1/7!: within the half of ln 2 on either side of 0 the rest is under 6e-9.
_FACTORS = tuple(np.float32(1 / factorial) for factorial in (5040, 720, 120, 24, 6, 2))


@compiled_exactly
def exp(x):
    """e to the x of at most 0; NaN stays NaN. Written out, so that a loop over it becomes vectors."""
    safe = x if x > _LEAST else _LEAST
    power = np.floor(safe * _LOG2_E + _HALF)
    rest = (safe - power * _LN_2_HIGH) - power * _LN_2_LOW
    total = _FACTORS[0]
    total = total * rest + _FACTORS[1]
    total = total * rest + _FACTORS[2]
    total = total * rest + _FACTORS[3]
    total = total * rest + _FACTORS[4]
    total = total * rest + _FACTORS[5]
    total = total * rest * rest + rest + _ONE
    total *= float_of(np.uint32((np.int32(power) + np.int32(127)) << np.int32(23)))
    return _ZERO if x <= _LEAST else total if x == x else x


@compiled_exactly
def bfloat16_of(x):
    """The bits of the nearest bfloat16, ties to even."""
    bits = bits_of(x)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16((bits + up) >> np.uint32(16) if x == x else np.uint32(0x7FC0))


@compiled
def largest(numbers):
    """The largest of some float32, but no less than the least that is finite.

    So the exp of a distance from it is 0 where all are -inf. A NaN is the largest or does not count.

    They are compared as whole numbers that have their order: vectors do that, but not for floats.
    """
    most = _in_order(np.int32(bits_of(_LEAST_FINITE)))
    for i in range(numbers.shape[0]):
        most = max(most, _in_order(np.int32(bits_of(numbers[i]))))
    return float_of(np.uint32(_in_order(most)))


@compiled
def _in_order(bits):
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@compiled
def weigh(scores, most, factor):
    """Scores become weights, e to their distance from `most` times a factor; their sum."""
    total = _ZERO
    for i in range(scores.shape[0]):
        weight = exp((scores[i] - most) * factor)
        scores[i] = weight
        total += weight
    return total


@compiled
def write_numbers(numbers, code, target):
    """Write float32 as bfloat16 or as they are."""
    if code == BFLOAT16:
        narrow = carray(pointer(target), (numbers.shape[0],), np.uint16)
        for i in range(numbers.shape[0]):
            narrow[i] = bfloat16_of(numbers[i])
    else:
        floats(target, numbers.shape[0])[:] = numbers


@compiled
def widen(source, code, target, count, pairs):
    """Write numbers that are stored otherwise as bfloat16 (`pairs`) or float32; every step is exact."""
    if code == INT8 and pairs:
        whole = carray(pointer(source), (count,), np.int8)
        upper = carray(pointer(target), (count,), np.uint16)
        for i in range(count):
            upper[i] = bits_of(np.float32(whole[i])) >> np.uint32(16)
        return
    wide = floats(target, count)
    if code == INT8:
        whole = carray(pointer(source), (count,), np.int8)
        for i in range(count):
            wide[i] = np.float32(whole[i])
    else:
        upper = carray(pointer(source), (count,), np.uint16)
        for i in range(count):
            wide[i] = float_of(np.uint32(upper[i]) << np.uint32(16))
