"""Many rows of x times weights, tile by tile.

The chunks of a job are first panels of x, then blocks of rows of the weights.
"""

import llvmlite.binding as llvm
from numba import types

from .compiler import c_function, compiled, symbol_address
from .ffi import (
    BFLOAT16,
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
    wait_for_chunks,
)
from .memory import free, load, malloc, store
from .numbers import widen
from .panels import pack_rows, panels_at_once
from .tiles import LANES, TILE_ROWS, multiply_tile

_CHUNK_ROWS = 16  # of weights, taken by a thread at a time; they stay in its cache for all panels
_TASK = "jax_llama3_matrix_task"

# The fields of a job, and those of an entry for each of the weights, which follow them; offsets in bytes.
_X, _CODE, _WORDS, _PACKED, _PANELS, _ENTRIES = range(JOB_BYTES, JOB_BYTES + 48, 8)
_WEIGHT, _WEIGHT_CODE, _OUT, _OUTPUTS, _ENTRY_BYTES = range(0, 40, 8)

_task_address = symbol_address(_TASK)


@compiled
def _pack(job, panel):
    """Write LANES rows of x as a panel."""
    step = 4 * load(job + _WORDS)
    source = load(job + _X) + panel * LANES * step
    target = load(job + _PACKED) + panel * LANES * step
    pack_rows(source, step, target)


@compiled
def _multiply(job, entry, start, scratch):
    """Multiply all of x by _CHUNK_ROWS rows of one weight, from `start` on."""
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
    """How many chunks the rows of one weight make."""
    return (load(entry + _OUTPUTS) + _CHUNK_ROWS - 1) // _CHUNK_ROWS


@compiled
def _work(job):
    """Pack panels, then multiply by chunks of the weights, until no chunk is left."""
    panels, scratch = load(job + _PANELS), malloc(4 * _CHUNK_ROWS * load(job + _WORDS))
    index = next_chunk(job)
    while index >= 0:
        if index < panels:
            _pack(job, index)
        else:
            wait_for_chunks(job, panels)
            entry, chunk = job + _ENTRIES, index - panels
            while chunk >= _n_chunks(entry):
                entry, chunk = entry + _ENTRY_BYTES, chunk - _n_chunks(entry)
            _multiply(job, entry, chunk * _CHUNK_ROWS, scratch)
        chunk_done(job)
        index = next_chunk(job)
    free(scratch)


@c_function(types.void(types.int64))
def _task(job):
    _work(job)
    release(job)


llvm.add_symbol(_TASK, _task.address)


@compiled
def _new_job(frame):
    """The job of a call with x and the weights; its results are room for the panels, then the products."""
    x, count = argument(frame, 0), n_results(frame) - 1
    job = allocate_job(_ENTRIES + count * _ENTRY_BYTES)
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
    """An XLA_FFI_Handler: takes an XLA_FFI_CallFrame and returns 0 for success."""
    if is_metadata_call(frame):
        return 0
    job = _new_job(frame)
    chunks = load(job + _PANELS)
    for index in range(n_results(frame) - 1):
        chunks += _n_chunks(job + _ENTRIES + index * _ENTRY_BYTES)
    start_workers(frame, _task_address(), job, chunks, n_threads(frame), 0)
    _work(job)
    wait_for_all(job)
    release(job)
    return 0
