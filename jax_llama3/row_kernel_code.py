"""What `row_kernel` compiles: imported only where numba is installed, and only when it is needed."""

import inspect

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

# Of XLA's structs: the codes of XLA_FFI_DataType, and where fields stand, in bytes.
_INT8, _BFLOAT16 = 2, 16
_EXTENSION, _API, _CONTEXT, _ARGUMENTS, _N_RESULTS, _RESULTS = 8, 16, 24, 72, 96, 112  # CallFrame
_DTYPE, _DATA, _DIMS = 16, 24, 40  # Buffer
_SCHEDULE, _N_THREADS = 136, 144  # Api
_METADATA = 1  # the kind of extension that asks for a version
_CHUNK_BYTES = 1 << 19  # of a weight, taken by a thread at a time
_LEAST_BYTES = 1 << 16  # less is not worth a thread
_TASK = "jax_llama3_row_task"
# Sums may be taken in any order, as in every fast product; nothing else is relaxed.
_OPTIONS = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "cache": True}
_WORD = ir.IntType(64)

# A job outlives its call if a thread comes late. Its fields, and those of each of the weights that
# follow them: offsets in bytes.
_NEXT, _DONE, _USERS, _CHUNKS, _X, _SPLIT, _ROWS, _WIDTH, _JOB_BYTES = range(0, 72, 8)
_WEIGHT, _CODE, _OUT, _OUTPUTS, _PIECES, _ENTRY_BYTES = range(0, 48, 8)

_malloc = types.ExternalFunction("malloc", types.int64(types.int64))
_free = types.ExternalFunction("free", types.void(types.int64))


def _compiled(function):
    # Unwrapped: numba compiles the function itself, not what a checker of types put around it.
    return njit(**_OPTIONS)(inspect.unwrap(function))


def _c_function(signature):
    return lambda function: cfunc(signature, **_OPTIONS)(inspect.unwrap(function))


def _at(builder, address):
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic
def _load(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.load(_at(builder, arguments[0]))

    return types.int64(types.int64), generate


@intrinsic
def _store(typing, address, value):
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
def _pointer(typing, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def _task_address(typing):
    """Where the task is in this process: by its symbol, so that a kept compilation stays right."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [_WORD])
        module = builder.module
        found = module.globals.get(_TASK) or ir.Function(module, kind, _TASK)
        return builder.ptrtoint(found, _WORD)

    return types.int64(), generate


@intrinsic
def _call(typing, function, argument):
    """Call a C function, given by its address, that takes and returns a pointer."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_WORD, [_WORD]).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), [arguments[1]])

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _float(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@_compiled
def _bfloat16_rows(even, odd, weight, out):
    """Two numbers a word: a bfloat16 is the upper half of a float32, so no lane has to move."""
    for output in range(out.shape[0]):
        total = np.float32(0)
        for i in range(even.shape[0]):
            word = weight[output, i]
            total += _float(word << np.uint32(16)) * even[i]
            total += _float(word & np.uint32(0xFFFF0000)) * odd[i]
        out[output] = total


@_compiled
def _rows(x, weight, out):
    for output in range(out.shape[0]):
        total = np.float32(0)
        for i in range(x.shape[0]):
            total += np.float32(weight[output, i]) * x[i]
        out[output] = total


@_compiled
def _outputs(job, entry, start, stop):
    """The outputs from `start` to `stop` of one weight, for every row of x."""
    width, weight, code = _load(job + _WIDTH), _load(entry + _WEIGHT), _load(entry + _CODE)
    count, half = stop - start, width // 2
    first = _pointer(weight + width * start * _itemsize(code))
    for row in range(_load(job + _ROWS)):
        place = _load(entry + _OUT) + 4 * (_load(entry + _OUTPUTS) * row + start)
        out = carray(_pointer(place), (count,), np.float32)
        if code == _BFLOAT16:
            split = _load(job + _SPLIT) + 4 * width * row
            even = carray(_pointer(split), (half,), np.float32)
            odd = carray(_pointer(split + 4 * half), (half,), np.float32)
            _bfloat16_rows(even, odd, carray(first, (count, half), np.uint32), out)
            continue
        x = carray(_pointer(_load(job + _X) + 4 * width * row), (width,), np.float32)
        if code == _INT8:
            _rows(x, carray(first, (count, width), np.int8), out)
        else:
            _rows(x, carray(first, (count, width), np.float32), out)


@_compiled
def _low(word):
    """A C enum takes the lower half of its place."""
    return word & 0xFFFFFFFF


@_compiled
def _itemsize(code):
    return 2 if code == _BFLOAT16 else 1 if code == _INT8 else 4


@_compiled
def _work(job):
    """Take chunks of outputs until none is left."""
    chunks = _load(job + _CHUNKS)
    while True:
        chunk = _fetch_add(job + _NEXT, 1)
        if chunk >= chunks:
            return
        entry = job + _JOB_BYTES
        while chunk >= _load(entry + _PIECES):
            chunk -= _load(entry + _PIECES)
            entry += _ENTRY_BYTES
        outputs, pieces = _load(entry + _OUTPUTS), _load(entry + _PIECES)
        _outputs(job, entry, outputs * chunk // pieces, outputs * (chunk + 1) // pieces)
        _fetch_add(job + _DONE, 1)


@_compiled
def _leave(job):
    if _fetch_add(job + _USERS, -1) == 1:
        _free(job)


@_c_function(types.void(types.int64))
def _task(job):
    _work(job)
    _leave(job)


llvm.add_symbol(_TASK, _task.address)


@_compiled
def _threads(frame):
    """How many threads XLA has: XLA_FFI_ThreadPool_NumThreads."""
    request = _malloc(40)
    _store(request, 32)
    _store(request + 8, 0)
    _store(request + 16, _load(frame + _CONTEXT))
    _store(request + 24, request + 32)  # where the answer goes
    _store(request + 32, 1)
    _call(_load(_load(frame + _API) + _N_THREADS), request)
    threads = _load(request + 32)
    _free(request)
    return threads


@_compiled
def _schedule(frame, job):
    """Hand the job to another of XLA's threads: XLA_FFI_ThreadPool_Schedule."""
    request = _malloc(40)
    _store(request, 40)
    _store(request + 8, 0)
    _store(request + 16, _load(frame + _CONTEXT))
    _store(request + 24, _task_address())
    _store(request + 32, job)
    failed = _call(_load(_load(frame + _API) + _SCHEDULE), request)
    _free(request)
    return failed != 0


@_compiled
def _split(job):
    """A copy of every row of x, its even places before its odd ones."""
    width = _load(job + _WIDTH)
    half = width // 2
    for row in range(_load(job + _ROWS)):
        x = carray(_pointer(_load(job + _X) + 4 * width * row), (width,), np.float32)
        split = carray(_pointer(_load(job + _SPLIT) + 4 * width * row), (width,), np.float32)
        for i in range(half):
            split[i], split[half + i] = x[2 * i], x[2 * i + 1]


@_compiled
def _new_job(frame, threads):
    """What the call's buffers hold: x, then the weights; and a result for each weight."""
    arguments, results = _load(frame + _ARGUMENTS), _load(frame + _RESULTS)
    count, x = _load(frame + _N_RESULTS), _load(arguments)
    rows, width = _load(_load(x + _DIMS)), _load(_load(x + _DIMS) + 8)
    split = _JOB_BYTES + count * _ENTRY_BYTES
    job = _malloc(split + 4 * rows * width)
    _store(job + _NEXT, 0)
    _store(job + _DONE, 0)
    _store(job + _X, _load(x + _DATA))
    _store(job + _SPLIT, job + split)
    _store(job + _ROWS, rows)
    _store(job + _WIDTH, width)
    chunks = 0
    for index in range(count):
        entry = job + _JOB_BYTES + index * _ENTRY_BYTES
        weight, out = _load(arguments + 8 * (index + 1)), _load(results + 8 * index)
        code, outputs = _low(_load(weight + _DTYPE)), _load(_load(out + _DIMS) + 8)
        nbytes = outputs * width * _itemsize(code)
        pieces = max(nbytes // _CHUNK_BYTES, min(threads, nbytes // _LEAST_BYTES), 1)
        pieces = min(pieces, outputs)
        _store(entry + _WEIGHT, _load(weight + _DATA))
        _store(entry + _CODE, code)
        _store(entry + _OUT, _load(out + _DATA))
        _store(entry + _OUTPUTS, outputs)
        _store(entry + _PIECES, pieces)
        chunks += pieces
    _store(job + _CHUNKS, chunks)
    _split(job)
    return job


@_c_function(types.int64(types.int64))
def _handler(frame):
    """An XLA_FFI_Handler: of an XLA_FFI_CallFrame, 0 for success."""
    extension = _load(frame + _EXTENSION)
    if extension != 0 and _low(_load(extension + 8)) == _METADATA:
        _store(_load(extension + 24) + 24, 3 << 32)  # written for version 0.3
        return 0
    threads = max(_threads(frame), 1)
    job = _new_job(frame, threads)
    chunks = _load(job + _CHUNKS)
    helpers = min(threads, chunks) - 1
    _store(job + _USERS, helpers + 1)
    for _ in range(helpers):
        if _schedule(frame, job):
            _leave(job)
    _work(job)
    # A chunk that is not done is in work, so this ends; who comes later finds nothing left to take.
    while _fetch_add(job + _DONE, 0) < chunks:
        pass
    _leave(job)
    return 0


def handler_address() -> int:
    """The compiled handler's address, after the task has been given its symbol."""
    return _handler.address
