"""Memory whose addresses are plain 64-bit integers: words read and written, arrays over it."""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from .compiler import compiled

_WORD = ir.IntType(64)

malloc = types.ExternalFunction("malloc", types.int64(types.int64))
free = types.ExternalFunction("free", types.void(types.int64))


def _at(builder, address):
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic
def load(typing, address):
    """The 64-bit word at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(_at(builder, arguments[0]))

    return types.int64(types.int64), generate


@intrinsic
def store(typing, address, value):
    """Write a 64-bit word to an address."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], _at(builder, arguments[0]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def fetch_add(typing, address, value):
    """Add to the word at an address atomically; returns what stood there before."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _at(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def pointer(typing, address):
    """The address as a C pointer, which `carray` makes an array of."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def call_function(typing, function, argument):
    """Call a C function, given by its address, that takes and returns a pointer."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_WORD, [_WORD]).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), [arguments[1]])

    return types.int64(types.int64, types.int64), generate


@compiled
def floats(address, count):
    """The array of float32 that begins at an address."""
    return carray(pointer(address), (count,), np.float32)
