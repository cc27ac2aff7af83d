"""What `matrix_kernel` compiles: many rows times weights, tile by tile."""

import llvmlite.binding as llvm
from numba import types

from .ffi import (
    BFLOAT16,
    JOB_BYTES,
    argument,
    c_function,
    compiled,
    data,
    dim,
    dtype_code,
    free,
    give,
    is_question,
    itemsize,
    leave,
    load,
    malloc,
    n_results,
    n_threads,
    new_job,
    result,
    share,
    store,
    symbol_address,
    take,
    wait,
    wait_for,
)
from .numbers import widen
from .panels import pack_rows, panels_at_once
from .tiles import LANES, TILE_ROWS, multiply_tile

_CHUNK_ROWS = 16  # of weights, that a thread takes at a time: they stay in its cache for all panels
_TASK = "jax_llama3_matrix_task"

# The fields of a job, and those of each of the weights, which follow them: offsets in bytes.
_X, _CODE, _WORDS, _PACKED, _PANELS, _ENTRIES = range(JOB_BYTES, JOB_BYTES + 48, 8)
_WEIGHT, _WEIGHT_CODE, _OUT, _OUTPUTS, _ENTRY_BYTES = range(0, 40, 8)

_task_address = symbol_address(_TASK)


@compiled
def _pack(job, panel):
    """Write the words of LANES rows of x as a panel."""
    step = 4 * load(job + _WORDS)
    source = load(job + _X) + panel * LANES * step
    target = load(job + _PACKED) + panel * LANES * step
    pack_rows(source, step, target)


@compiled
def _multiply(job, entry, start, scratch):
    """A chunk of rows of one weight, for all of x."""
    outputs, code, words = load(entry + _OUTPUTS), load(entry + _WEIGHT_CODE), load(job + _WORDS)
    pairs = 1 if load(job + _CODE) == BFLOAT16 else 0
    width = 2 * words if pairs else words
    stop = min(start + _CHUNK_ROWS, outputs)
    weight = load(entry + _WEIGHT) + start * width * itemsize(code)
    if code != load(job + _CODE):
        widen(weight, code, scratch, (stop - start) * width, pairs)
        weight = scratch
    panel, left, step = load(job + _PACKED), load(job + _PANELS), 4 * words
    out, out_step = load(entry + _OUT) + 4 * start, 4 * outputs
    while left > 0:
        count = panels_at_once(left)
        for row in range(0, stop - start, TILE_ROWS):
            rows, place = weight + row * step, out + 4 * row
            multiply_tile(pairs, count, panel, LANES * step, rows, step, place, out_step, words)
        left -= count
        panel += count * LANES * step
        out += count * LANES * out_step


@compiled
def _n_chunks(entry):
    return (load(entry + _OUTPUTS) + _CHUNK_ROWS - 1) // _CHUNK_ROWS


@compiled
def _work(job):
    """Pack panels, then multiply by chunks of the weights, until none is left."""
    panels, scratch = load(job + _PANELS), malloc(4 * _CHUNK_ROWS * load(job + _WORDS))
    index = take(job)
    while index >= 0:
        if index < panels:
            _pack(job, index)
        else:
            wait_for(job, panels)
            entry, chunk = job + _ENTRIES, index - panels
            while chunk >= _n_chunks(entry):
                entry, chunk = entry + _ENTRY_BYTES, chunk - _n_chunks(entry)
            _multiply(job, entry, chunk * _CHUNK_ROWS, scratch)
        give(job)
        index = take(job)
    free(scratch)


@c_function(types.void(types.int64))
def _task(job):
    _work(job)
    leave(job)


llvm.add_symbol(_TASK, _task.address)


@compiled
def _new_job(frame):
    """What the call's buffers hold: x, then the weights; and room for the panels, then the products."""
    x, count = argument(frame, 0), n_results(frame) - 1
    job = new_job(_ENTRIES + count * _ENTRY_BYTES)
    store(job + _X, data(x))
    store(job + _CODE, dtype_code(x))
    store(job + _WORDS, dim(x, 1) * itemsize(dtype_code(x)) // 4)
    store(job + _PACKED, data(result(frame, 0)))
    store(job + _PANELS, dim(x, 0) // LANES)
    for index in range(count):
        entry, weight = job + _ENTRIES + index * _ENTRY_BYTES, argument(frame, index + 1)
        store(entry + _WEIGHT, data(weight))
        store(entry + _WEIGHT_CODE, dtype_code(weight))
        store(entry + _OUT, data(result(frame, index + 1)))
        store(entry + _OUTPUTS, dim(weight, 0))
    return job


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: of an XLA_FFI_CallFrame, 0 for success."""
    if is_question(frame):
        return 0
    job = _new_job(frame)
    chunks = load(job + _PANELS)
    for index in range(n_results(frame) - 1):
        chunks += _n_chunks(job + _ENTRIES + index * _ENTRY_BYTES)
    share(frame, _task_address(), job, chunks, n_threads(frame), 0)
    _work(job)
    wait(job)
    leave(job)
    return 0
