"""What the kernels share: XLA's C structs, addressed by plain integers, and work for XLA's threads.

The foreign function interface hands over structs that are read here by their offsets on 64-bit
machines (xla/ffi/api/c_api.h, version 0.3, kept stable by XLA). Imported only where numba is installed.
"""

import hashlib
import inspect
from pathlib import Path
from types import CellType, FunctionType

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

# The codes of XLA_FFI_DataType, and where fields stand, in bytes.
INT8, BFLOAT16 = 2, 16
_EXTENSION, _API, _CONTEXT, _ARGUMENTS, _N_RESULTS, _RESULTS = 8, 16, 24, 72, 96, 112  # CallFrame
_DTYPE, _DATA, _DIMS = 16, 24, 40  # Buffer
_SCHEDULE, _N_THREADS = 136, 144  # Api
_METADATA = 1  # the kind of extension that asks for a version

# A job is the memory of a call: these fields, then the kernel's own. It outlives the call if a
# thread comes late.
_NEXT, _DONE, _USERS, _CHUNKS, JOB_BYTES = range(0, 40, 8)

# Sums may be taken in any order, as in every fast product; nothing else is relaxed.
_LOOSE = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_EXACT = {"error_model": "numpy"}
_WORD = ir.IntType(64)

malloc = types.ExternalFunction("malloc", types.int64(types.int64))
free = types.ExternalFunction("free", types.void(types.int64))


def compiled(function):
    # Unwrapped: numba compiles the function itself, not what a checker of types put around it.
    return njit(**_LOOSE)(inspect.unwrap(function))


def compiled_exactly(function):
    return njit(**_EXACT)(inspect.unwrap(function))


def c_function(signature):
    """Compile what C calls, with all that it calls itself; numba keeps that for other processes."""
    kept = cfunc(signature, **_LOOSE, cache=True)
    return lambda function: kept(_of_all_sources(inspect.unwrap(function)))


def _of_all_sources(function):
    """The function as a closure over what the kernels are made of, although it reads none of it.

    numba finds what it keeps by the function's own file and code, and by the values it closes over.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    assert sources, "the sources of the kernels are not beside this file"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    code = function.__code__.replace(co_freevars=("digest",))
    name, cells = function.__name__, (CellType(digest),)
    return FunctionType(code, function.__globals__, name, closure=cells)


def _at(builder, address):
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic
def load(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.load(_at(builder, arguments[0]))

    return types.int64(types.int64), generate


@intrinsic
def store(typing, address, value):
    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], _at(builder, arguments[0]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _fetch_add(typing, address, value):
    """Add atomically; the value before."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _at(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def pointer(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


def symbol_address(name):
    """A function that gives the address a symbol has in this process.

    By its symbol, so that a compilation kept from another process stays right.
    """

    @intrinsic
    def address(typing):
        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.VoidType(), [_WORD])
            module = builder.module
            found = module.globals.get(name) or ir.Function(module, kind, name)
            return builder.ptrtoint(found, _WORD)

        return types.int64(), generate

    return address


@intrinsic
def _call(typing, function, argument):
    """Call a C function, given by its address, that takes and returns a pointer."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_WORD, [_WORD]).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), [arguments[1]])

    return types.int64(types.int64, types.int64), generate


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
def floats(address, count):
    """The array of float32 that begins at an address."""
    return carray(pointer(address), (count,), np.float32)


@compiled
def even_bfloat16(word):
    """The first of the two bfloat16 in a word, each the upper half of a float32: no lane moves."""
    return float_of(word << np.uint32(16))


@compiled
def odd_bfloat16(word):
    return float_of(word & np.uint32(0xFFFF0000))


@compiled
def _low(word):
    """A C enum takes the lower half of its place."""
    return word & 0xFFFFFFFF


@compiled
def argument(frame, index):
    """The buffer of an argument of the call."""
    return load(load(frame + _ARGUMENTS) + 8 * index)


@compiled
def result(frame, index):
    """The buffer of a result of the call."""
    return load(load(frame + _RESULTS) + 8 * index)


@compiled
def n_results(frame):
    return load(frame + _N_RESULTS)


@compiled
def data(buffer):
    return load(buffer + _DATA)


@compiled
def dim(buffer, axis):
    return load(load(buffer + _DIMS) + 8 * axis)


@compiled
def dtype_code(buffer):
    return _low(load(buffer + _DTYPE))


@compiled
def itemsize(code):
    return 2 if code == BFLOAT16 else 1 if code == INT8 else 4


@compiled
def is_question(frame):
    """Whether XLA only asks which version a handler is for; it is answered."""
    extension = load(frame + _EXTENSION)
    if extension == 0 or _low(load(extension + 8)) != _METADATA:
        return False
    store(load(extension + 24) + 24, 3 << 32)  # version 0.3
    return True


@compiled
def n_threads(frame):
    """How many threads XLA has: XLA_FFI_ThreadPool_NumThreads."""
    request = malloc(40)
    store(request, 32)
    store(request + 8, 0)
    store(request + 16, load(frame + _CONTEXT))
    store(request + 24, request + 32)  # where the answer goes
    store(request + 32, 1)
    _call(load(load(frame + _API) + _N_THREADS), request)
    threads = load(request + 32)
    free(request)
    return max(threads, 1)


@compiled
def _schedule(frame, task, job):
    """Hand the job to another of XLA's threads: XLA_FFI_ThreadPool_Schedule."""
    request = malloc(40)
    store(request, 40)
    store(request + 8, 0)
    store(request + 16, load(frame + _CONTEXT))
    store(request + 24, task)
    store(request + 32, job)
    failed = _call(load(load(frame + _API) + _SCHEDULE), request)
    free(request)
    return failed != 0


@compiled
def new_job(nbytes):
    return malloc(nbytes)


@compiled
def share(frame, task, job, chunks, threads, called):
    """Let `threads` threads, this one among them, take chunks of a job; `task` does so and leaves.

    At least `called` others are called, even if no chunk is left for them.
    """
    store(job + _NEXT, 0)
    store(job + _DONE, 0)
    store(job + _CHUNKS, chunks)
    helpers = max(min(threads, chunks) - 1, called)
    store(job + _USERS, helpers + 1)
    for _ in range(helpers):
        if _schedule(frame, task, job):
            leave(job)


@compiled
def take(job):
    """The next chunk that nobody has taken; -1 if none is left."""
    chunk = _fetch_add(job + _NEXT, 1)
    return chunk if chunk < load(job + _CHUNKS) else -1


@compiled
def give(job):
    """Say that a chunk is done."""
    _fetch_add(job + _DONE, 1)


@compiled
def wait_for(job, chunks):
    """Until so many chunks are done. All of them have been taken, so what is not done is in work."""
    while _fetch_add(job + _DONE, 0) < chunks:
        pass


@compiled
def wait(job):
    """Until all chunks are done."""
    wait_for(job, load(job + _CHUNKS))


@compiled
def leave(job):
    if _fetch_add(job + _USERS, -1) == 1:
        free(job)
