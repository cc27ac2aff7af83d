"""Single numbers and their formats: bits, bfloat16, int8, and e to a power."""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from .compiler import compiled, compiled_exactly
from .ffi import BFLOAT16, INT8
from .memory import floats, pointer

_ZERO, _ONE = np.float32(0), np.float32(1)
_MIN_EXPONENT = np.float32(-87)  # e to any lower power is not a normal float32
_HALF, _LOG2_E = np.float32(0.5), np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# 1/7! to 1/2!: for powers within ln 2 / 2 of 0 the terms left out are under 6e-9.
_FACTORS = tuple(np.float32(1 / factorial) for factorial in (5040, 720, 120, 24, 6, 2))


@intrinsic
def float_of(typing, bits):
    """The float32 that has these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def bits_of(typing, value):
    """The bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@compiled
def even_bfloat16(word):
    """The first of the two bfloat16 in a word, as float32.

    A bfloat16 is the upper half of a float32, so both are widened where they lie in a vector.
    """
    return float_of(word << np.uint32(16))


@compiled
def odd_bfloat16(word):
    """The second of the two bfloat16 in a word, as float32."""
    return float_of(word & np.uint32(0xFFFF0000))


@compiled_exactly
def exp(x):
    """e to the x of at most 0; NaN stays NaN. Written out, so that a loop over it becomes vectors."""
    safe = x if x > _MIN_EXPONENT else _MIN_EXPONENT
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
    return _ZERO if x <= _MIN_EXPONENT else total if x == x else x


@compiled_exactly
def bfloat16_of(x):
    """The bits of the nearest bfloat16, ties to even."""
    bits = bits_of(x)
    up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16((bits + up) >> np.uint32(16) if x == x else np.uint32(0x7FC0))


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
    """Write int8 or bfloat16 in a wider format: bfloat16 if `pairs`, else float32. It is exact."""
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
