"""What `row_kernel` compiles: a row times weights."""

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types

from .ffi import (
    BFLOAT16,
    INT8,
    JOB_BYTES,
    argument,
    c_function,
    compiled,
    data,
    dim,
    dtype_code,
    even_bfloat16,
    give,
    is_question,
    itemsize,
    leave,
    load,
    n_results,
    n_threads,
    new_job,
    odd_bfloat16,
    pointer,
    result,
    share,
    store,
    symbol_address,
    take,
    wait,
)

_LEAST_BYTES = 1 << 17  # of the weights, that a thread takes at a time
_CACHED_BYTES = 1 << 19  # of the weights, that stay in its cache for several rows of x
_WIDE_WORDS = 2048  # of a bfloat16 row: an x of 16 KB
_TASK = "jax_llama3_row_task"

# The fields of a job, and those of each of the weights, which follow them: offsets in bytes.
_X, _SPLIT, _ROWS, _WIDTH, _BYTES, _SHARES, _LEAST, _ENTRIES = range(JOB_BYTES, JOB_BYTES + 64, 8)
_WEIGHT, _CODE, _OUT, _OUTPUTS, _OUTPUT_BYTES, _ENTRY_BYTES = range(0, 48, 8)

_task_address = symbol_address(_TASK)


@compiled
def _rows(x, weight, out):
    """Four rows at a time, far from each other: a core reads four streams faster than one."""
    quarter = out.shape[0] // 4
    for output in range(quarter):
        row_0, row_1 = weight[output], weight[output + quarter]
        row_2, row_3 = weight[output + 2 * quarter], weight[output + 3 * quarter]
        sum_0 = sum_1 = sum_2 = sum_3 = np.float32(0)
        for i in range(x.shape[0]):
            sum_0 += np.float32(row_0[i]) * x[i]
            sum_1 += np.float32(row_1[i]) * x[i]
            sum_2 += np.float32(row_2[i]) * x[i]
            sum_3 += np.float32(row_3[i]) * x[i]
        out[output], out[output + quarter] = sum_0, sum_1
        out[output + 2 * quarter], out[output + 3 * quarter] = sum_2, sum_3
    for output in range(4 * quarter, out.shape[0]):
        total = np.float32(0)
        for i in range(x.shape[0]):
            total += np.float32(weight[output, i]) * x[i]
        out[output] = total


@compiled
def _bfloat16_rows(even, odd, weight, out):
    """As `_rows`, with two numbers a word.

    Two rows at a time keep four sums. The x of a wide row does not stay in the nearest cache beside the
    weights, so eight rows share each reading of it.
    """
    if even.shape[0] < _WIDE_WORDS:
        done = _pairs_of_rows(even, odd, weight, out)
    else:
        done = _eights_of_rows(even, odd, weight, out)
    for output in range(done, out.shape[0]):
        total = np.float32(0)
        for i in range(even.shape[0]):
            total += _products(weight[output, i], even[i], odd[i])
        out[output] = total


@compiled
def _products(word, even, odd):
    return even_bfloat16(word) * even + odd_bfloat16(word) * odd


@compiled
def _pairs_of_rows(even, odd, weight, out):
    half = out.shape[0] // 2
    for output in range(half):
        row_0, row_1 = weight[output], weight[output + half]
        sum_0 = sum_1 = np.float32(0)
        for i in range(even.shape[0]):
            sum_0 += _products(row_0[i], even[i], odd[i])
            sum_1 += _products(row_1[i], even[i], odd[i])
        out[output], out[output + half] = sum_0, sum_1
    return 2 * half


@compiled
def _eights_of_rows(even, odd, weight, out):
    part = out.shape[0] // 8
    for first in range(part):
        row_0, row_1 = weight[first], weight[first + part]
        row_2, row_3 = weight[first + 2 * part], weight[first + 3 * part]
        row_4, row_5 = weight[first + 4 * part], weight[first + 5 * part]
        row_6, row_7 = weight[first + 6 * part], weight[first + 7 * part]
        sum_0 = sum_1 = sum_2 = sum_3 = sum_4 = sum_5 = sum_6 = sum_7 = np.float32(0)
        for i in range(even.shape[0]):
            sum_0 += _products(row_0[i], even[i], odd[i])
            sum_1 += _products(row_1[i], even[i], odd[i])
            sum_2 += _products(row_2[i], even[i], odd[i])
            sum_3 += _products(row_3[i], even[i], odd[i])
            sum_4 += _products(row_4[i], even[i], odd[i])
            sum_5 += _products(row_5[i], even[i], odd[i])
            sum_6 += _products(row_6[i], even[i], odd[i])
            sum_7 += _products(row_7[i], even[i], odd[i])
        out[first], out[first + part] = sum_0, sum_1
        out[first + 2 * part], out[first + 3 * part] = sum_2, sum_3
        out[first + 4 * part], out[first + 5 * part] = sum_4, sum_5
        out[first + 6 * part], out[first + 7 * part] = sum_6, sum_7
    return 8 * part


@compiled
def _outputs(job, entry, start, stop):
    """The outputs from `start` to `stop` of one weight, for every row of x."""
    width, weight, code = load(job + _WIDTH), load(entry + _WEIGHT), load(entry + _CODE)
    count, half = stop - start, width // 2
    first = pointer(weight + width * start * itemsize(code))
    for row in range(load(job + _ROWS)):
        place = load(entry + _OUT) + 4 * (load(entry + _OUTPUTS) * row + start)
        out = carray(pointer(place), (count,), np.float32)
        if code == BFLOAT16:
            split = load(job + _SPLIT) + 4 * width * row
            even = carray(pointer(split), (half,), np.float32)
            odd = carray(pointer(split + 4 * half), (half,), np.float32)
            _bfloat16_rows(even, odd, carray(first, (count, half), np.uint32), out)
            continue
        x = carray(pointer(load(job + _X) + 4 * width * row), (width,), np.float32)
        if code == INT8:
            _rows(x, carray(first, (count, width), np.int8), out)
        else:
            _rows(x, carray(first, (count, width), np.float32), out)


@compiled
def _stop(job, entry, start, left):
    """Where a piece ends that begins at the output `start`, with `left` bytes of weights to take.

    It is a share of what is left: large, so that its streams are long, and smaller towards the end,
    so that all threads end together.
    """
    nbytes = max(left // load(job + _SHARES), load(job + _LEAST))
    count = max(nbytes // load(entry + _OUTPUT_BYTES), 1)
    return min(start + count, load(entry + _OUTPUTS))


@compiled
def _next(entry, stop):
    """The entry of the weight in which the next piece begins, and at which output."""
    return (entry, stop) if stop < load(entry + _OUTPUTS) else (entry + _ENTRY_BYTES, 0)


@compiled
def _piece(job, index):
    """The entry of the weight that a piece is of, and its outputs from `start` to `stop`."""
    entry, start, left = job + _ENTRIES, 0, load(job + _BYTES)
    for _ in range(index):
        stop = _stop(job, entry, start, left)
        left -= (stop - start) * load(entry + _OUTPUT_BYTES)
        entry, start = _next(entry, stop)
    return entry, start, _stop(job, entry, start, left)


@compiled
def _work(job):
    """Take pieces until none is left."""
    index = take(job)
    while index >= 0:
        entry, start, stop = _piece(job, index)
        # For several rows of x a part of the piece stays in the core's cache until all have used it.
        several = load(job + _ROWS) > 1
        step = max(_CACHED_BYTES // load(entry + _OUTPUT_BYTES), 1) if several else stop - start
        for first in range(start, stop, max(step, 1)):
            _outputs(job, entry, first, min(first + step, stop))
        give(job)
        index = take(job)


@c_function(types.void(types.int64))
def _task(job):
    _work(job)
    leave(job)


llvm.add_symbol(_TASK, _task.address)


@compiled
def _split(job):
    """A copy of every row of x, its even places before its odd ones."""
    width = load(job + _WIDTH)
    half = width // 2
    for row in range(load(job + _ROWS)):
        x = carray(pointer(load(job + _X) + 4 * width * row), (width,), np.float32)
        split = carray(pointer(load(job + _SPLIT) + 4 * width * row), (width,), np.float32)
        for i in range(half):
            split[i], split[half + i] = x[2 * i], x[2 * i + 1]


@compiled
def _new_job(frame):
    """What the call's buffers hold: x, then the weights; and a result for each weight."""
    count, x = n_results(frame), argument(frame, 0)
    rows, width = dim(x, 0), dim(x, 1)
    split = _ENTRIES + count * _ENTRY_BYTES
    job = new_job(split + 4 * rows * width)
    store(job + _X, data(x))
    store(job + _SPLIT, job + split)
    store(job + _ROWS, rows)
    store(job + _WIDTH, width)
    _split(job)
    return job


@compiled
def _note_weights(frame, job):
    """An entry for each weight; their bytes together, and those of the longest row."""
    total = longest = 0
    for index in range(n_results(frame)):
        entry = job + _ENTRIES + index * _ENTRY_BYTES
        weight, out = argument(frame, index + 1), result(frame, index)
        code, outputs = dtype_code(weight), dim(out, 1)
        nbytes = load(job + _WIDTH) * itemsize(code)
        store(entry + _WEIGHT, data(weight))
        store(entry + _CODE, code)
        store(entry + _OUT, data(out))
        store(entry + _OUTPUTS, outputs)
        store(entry + _OUTPUT_BYTES, nbytes)
        total, longest = total + outputs * nbytes, max(longest, nbytes)
    return total, longest


@compiled
def _cut(frame, job, threads):
    """Say how the weights are cut into pieces; how many there are together."""
    total, longest = _note_weights(frame, job)
    store(job + _BYTES, total)
    store(job + _SHARES, 2 * threads)
    store(job + _LEAST, max(_LEAST_BYTES, longest))
    entry, start, pieces = job + _ENTRIES, 0, 0
    while entry < job + _ENTRIES + n_results(frame) * _ENTRY_BYTES:
        stop = _stop(job, entry, start, total)
        total -= (stop - start) * load(entry + _OUTPUT_BYTES)
        entry, start = _next(entry, stop)
        pieces += 1
    return pieces


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: of an XLA_FFI_CallFrame, 0 for success."""
    if is_question(frame):
        return 0
    threads = n_threads(frame)
    job = _new_job(frame)
    share(frame, _task_address(), job, _cut(frame, job, threads), threads, 0)
    _work(job)
    wait(job)
    leave(job)
    return 0
