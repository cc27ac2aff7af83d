"""A row of x, or a few, times weights.

A chunk of the job is some rows of one weight, which are called outputs here: each gives one number.
"""

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types

from .compiler import c_function, compiled, symbol_address
from .ffi import (
    BFLOAT16,
    INT8,
    argument,
    data,
    dim,
    dtype_code,
    is_metadata_call,
    itemsize,
    n_results,
    n_threads,
    result,
)
from .jobs import (
    JOB_BYTES,
    allocate_job,
    chunk_done,
    next_chunk,
    release,
    start_workers,
    wait_for_all,
)
from .memory import load, pointer, store
from .numbers import even_bfloat16, odd_bfloat16

_MIN_CHUNK_BYTES = 1 << 17  # of weights; a chunk has at least so many, unless its weight ends
_CACHED_BYTES = 1 << 19  # of weights, few enough to stay in a core's cache for several rows of x
_WIDE_WORDS = 2048  # of a bfloat16 row, for which x takes 16 KB
_TASK = "jax_llama3_row_task"

# The fields of a job, and those of an entry for each of the weights, which follow them; offsets in bytes.
_X, _EVEN_ODD, _ROWS, _WIDTH = range(JOB_BYTES, JOB_BYTES + 32, 8)
_BYTES, _DIVISOR, _MIN_BYTES, _ENTRIES = range(JOB_BYTES + 32, JOB_BYTES + 64, 8)
_WEIGHT, _CODE, _OUT, _OUTPUTS, _OUTPUT_BYTES, _ENTRY_BYTES = range(0, 48, 8)

_task_address = symbol_address(_TASK)


@compiled
def _multiply_rows(x, weight, out):
    """Multiply x by four rows of the weight at a time, far from each other.

    A core reads four streams faster than one.
    """
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
def _multiply_bfloat16_rows(even, odd, weight, out):
    """Multiply x, its even and odd places apart, by rows of words that hold two bfloat16 each.

    Two rows at a time are enough, because their words hold two numbers each, which makes four sums. If
    rows are wide, x does not stay in the nearest cache beside the weights, so eight rows share each
    reading of it.
    """
    if even.shape[0] < _WIDE_WORDS:
        done = _multiply_two_rows(even, odd, weight, out)
    else:
        done = _multiply_eight_rows(even, odd, weight, out)
    for output in range(done, out.shape[0]):
        total = np.float32(0)
        for i in range(even.shape[0]):
            total += _products(weight[output, i], even[i], odd[i])
        out[output] = total


@compiled
def _products(word, even, odd):
    """The sum of the products of a word's two bfloat16 with the two numbers of x."""
    return even_bfloat16(word) * even + odd_bfloat16(word) * odd


@compiled
def _multiply_two_rows(even, odd, weight, out):
    """Multiply by two rows at a time, half the weight apart; returns how many rows are done."""
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
def _multiply_eight_rows(even, odd, weight, out):
    """Multiply by eight rows at a time, an eighth of the weight apart; returns how many are done."""
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
def _compute_outputs(job, entry, start, stop):
    """Write the outputs from `start` to `stop` of one weight, for every row of x."""
    width, weight, code = load(job + _WIDTH), load(entry + _WEIGHT), load(entry + _CODE)
    count, half = stop - start, width // 2
    first = pointer(weight + width * start * itemsize(code))
    for row in range(load(job + _ROWS)):
        place = load(entry + _OUT) + 4 * (load(entry + _OUTPUTS) * row + start)
        out = carray(pointer(place), (count,), np.float32)
        if code == BFLOAT16:
            even_odd = load(job + _EVEN_ODD) + 4 * width * row
            even = carray(pointer(even_odd), (half,), np.float32)
            odd = carray(pointer(even_odd + 4 * half), (half,), np.float32)
            _multiply_bfloat16_rows(even, odd, carray(first, (count, half), np.uint32), out)
            continue
        x = carray(pointer(load(job + _X) + 4 * width * row), (width,), np.float32)
        if code == INT8:
            _multiply_rows(x, carray(first, (count, width), np.int8), out)
        else:
            _multiply_rows(x, carray(first, (count, width), np.float32), out)


@compiled
def _chunk_stop(job, entry, start, left):
    """Where the chunk ends that begins at the output `start`, when `left` bytes are not in a chunk yet.

    A chunk is a fraction of what is left. So the first ones are large, which makes their streams long,
    and the last ones are small, which lets all threads end together.
    """
    nbytes = max(left // load(job + _DIVISOR), load(job + _MIN_BYTES))
    count = max(nbytes // load(entry + _OUTPUT_BYTES), 1)
    return min(start + count, load(entry + _OUTPUTS))


@compiled
def _next_start(entry, stop):
    """The entry of the weight in which the next chunk begins, and at which output."""
    return (entry, stop) if stop < load(entry + _OUTPUTS) else (entry + _ENTRY_BYTES, 0)


@compiled
def _chunk(job, index):
    """The entry of the weight that a chunk belongs to, its first output and the one after its last."""
    entry, start, left = job + _ENTRIES, 0, load(job + _BYTES)
    for _ in range(index):
        stop = _chunk_stop(job, entry, start, left)
        left -= (stop - start) * load(entry + _OUTPUT_BYTES)
        entry, start = _next_start(entry, stop)
    return entry, start, _chunk_stop(job, entry, start, left)


@compiled
def _work(job):
    """Multiply chunk by chunk until none is left."""
    index = next_chunk(job)
    while index >= 0:
        entry, start, stop = _chunk(job, index)
        # With several rows of x, a part of the chunk stays in the cache until all of them have used it.
        several = load(job + _ROWS) > 1
        step = max(_CACHED_BYTES // load(entry + _OUTPUT_BYTES), 1) if several else stop - start
        for first in range(start, stop, max(step, 1)):
            _compute_outputs(job, entry, first, min(first + step, stop))
        chunk_done(job)
        index = next_chunk(job)


@c_function(types.void(types.int64))
def _task(job):
    _work(job)
    release(job)


llvm.add_symbol(_TASK, _task.address)


@compiled
def _separate_even_and_odd(job):
    """Copy every row of x with its even places before its odd ones."""
    width = load(job + _WIDTH)
    half = width // 2
    for row in range(load(job + _ROWS)):
        x = carray(pointer(load(job + _X) + 4 * width * row), (width,), np.float32)
        even_odd = carray(pointer(load(job + _EVEN_ODD) + 4 * width * row), (width,), np.float32)
        for i in range(half):
            even_odd[i], even_odd[half + i] = x[2 * i], x[2 * i + 1]


@compiled
def _new_job(frame):
    """The job of a call with x and the weights, which has a result for each weight."""
    count, x = n_results(frame), argument(frame, 0)
    rows, width = dim(x, 0), dim(x, 1)
    even_odd = _ENTRIES + count * _ENTRY_BYTES
    job = allocate_job(even_odd + 4 * rows * width)
    store(job + _X, data(x))
    store(job + _EVEN_ODD, job + even_odd)
    store(job + _ROWS, rows)
    store(job + _WIDTH, width)
    _separate_even_and_odd(job)
    return job


@compiled
def _write_entries(frame, job):
    """Write an entry for each weight; returns the bytes of all, and those of the longest row."""
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
def _divide(frame, job, threads):
    """Divide the weights into chunks; returns how many there are."""
    total, longest = _write_entries(frame, job)
    store(job + _BYTES, total)
    store(job + _DIVISOR, 2 * threads)
    store(job + _MIN_BYTES, max(_MIN_CHUNK_BYTES, longest))
    entry, start, chunks = job + _ENTRIES, 0, 0
    while entry < job + _ENTRIES + n_results(frame) * _ENTRY_BYTES:
        stop = _chunk_stop(job, entry, start, total)
        total -= (stop - start) * load(entry + _OUTPUT_BYTES)
        entry, start = _next_start(entry, stop)
        chunks += 1
    return chunks


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: takes an XLA_FFI_CallFrame and returns 0 for success."""
    if is_metadata_call(frame):
        return 0
    threads = n_threads(frame)
    job = _new_job(frame)
    start_workers(frame, _task_address(), job, _divide(frame, job, threads), threads, 0)
    _work(job)
    wait_for_all(job)
    release(job)
    return 0
