"""Attention of one query per row over the slots that are used.

Slots are taken in blocks. Each block has its own softmax, with its largest score and its sum, and the
blocks are combined at the end (arXiv:2112.05682), so a long row is shared out to several threads.
"""

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types

from .compiler import c_function, compiled, symbol_address
from .decode_job import (
    BLOCK,
    BLOCKS,
    CAPACITY,
    CODE,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    OUT,
    SCALES,
    K,
    Q,
    V,
    block_result,
    new_job,
    result_floats,
    used_slots,
)
from .ffi import BFLOAT16, INT8, argument, dim, is_metadata_call, itemsize, n_threads
from .four_rows import (
    add_weighted,
    add_weighted_bfloat16,
    dot_products,
    dot_products_bfloat16,
    four_rows,
)
from .jobs import chunk_done, next_chunk, release, start_workers, wait_for_all
from .memory import floats, load, pointer
from .numbers import exp
from .softmax import exp_row, row_max

_MIN_THREAD_BYTES = 1 << 16  # of keys and values; for less it does not pay to call a thread
_TASK = "jax_llama3_attention_task"

_task_address = symbol_address(_TASK)

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def _four_slots(job, field, first, slots, step, head):
    """The addresses and the scales of one head of keys or values in four slots of a block.

    The slots are `step` and those a quarter, two and three quarters of the block further on. Where the
    block is no multiple of four, those after its end are the last slot again; what they give is not used.
    """
    kv_heads, code = load(job + KV_HEADS), load(job + CODE)
    quarter, nbytes = (slots + 3) // 4, load(job + HEAD_DIM) * itemsize(code)
    place_0 = (first + step) * kv_heads + head
    place_1 = (first + min(step + quarter, slots - 1)) * kv_heads + head
    place_2 = (first + min(step + 2 * quarter, slots - 1)) * kv_heads + head
    place_3 = (first + min(step + 3 * quarter, slots - 1)) * kv_heads + head
    scales = (_ONE, _ONE, _ONE, _ONE)
    if code == INT8:
        every = load(job + field + SCALES)
        scales = (
            floats(every + 4 * place_0, 1)[0],
            floats(every + 4 * place_1, 1)[0],
            floats(every + 4 * place_2, 1)[0],
            floats(every + 4 * place_3, 1)[0],
        )
    base = load(job + field)
    addresses = (
        base + nbytes * place_0,
        base + nbytes * place_1,
        base + nbytes * place_2,
        base + nbytes * place_3,
    )
    return addresses, scales


@compiled
def _compute_scores(job, first, slots, q, out):
    """Write the scores of each query with the keys of a block that begins at the slot `first`.

    `q` and `out` are addresses. A query gets as many scores as the next multiple of four; those after
    `slots` are set to weights of 0 by `_softmax`.
    """
    kv_heads, width, code = load(job + KV_HEADS), load(job + HEAD_DIM), load(job + CODE)
    group, half, quarter = load(job + HEADS) // kv_heads, width // 2, (slots + 3) // 4
    for step in range(quarter):
        for head in range(kv_heads):
            addresses, scales = _four_slots(job, K, first, slots, step, head)
            for query in range(head * group, (head + 1) * group):
                row, scores = q + 4 * query * width, floats(out + 4 * query * BLOCK, BLOCK)
                if code == BFLOAT16:
                    even, odd = floats(row, half), floats(row + 4 * half, half)
                    four = dot_products_bfloat16(even, odd, four_rows(addresses, half, np.uint32))
                elif code == INT8:
                    keys = four_rows(addresses, width, np.int8)
                    four = dot_products(floats(row, width), keys, scales)
                else:
                    keys = four_rows(addresses, width, np.float32)
                    four = dot_products(floats(row, width), keys, scales)
                scores[step], scores[step + quarter] = four[0], four[1]
                scores[step + 2 * quarter], scores[step + 3 * quarter] = four[2], four[3]


@compiled
def _sum_values(job, first, slots, every, out):
    """Write the sum of a block's values by each query's weights.

    `every` is the address of the weights of all queries; those of no slot are 0.
    """
    kv_heads, width, code = load(job + KV_HEADS), load(job + HEAD_DIM), load(job + CODE)
    group, half, quarter = load(job + HEADS) // kv_heads, width // 2, (slots + 3) // 4
    floats(out, kv_heads * group * width)[:] = _ZERO
    for step in range(quarter):
        for head in range(kv_heads):
            addresses, scales = _four_slots(job, V, first, slots, step, head)
            for query in range(head * group, (head + 1) * group):
                row, weights = out + 4 * query * width, floats(every + 4 * query * BLOCK, BLOCK)
                low = (weights[step], weights[step + quarter])
                high = (weights[step + 2 * quarter], weights[step + 3 * quarter])
                if code == BFLOAT16:
                    even, odd = floats(row, half), floats(row + 4 * half, half)
                    values = four_rows(addresses, half, np.uint32)
                    add_weighted_bfloat16(low + high, values, even, odd)
                elif code == INT8:
                    values = four_rows(addresses, width, np.int8)
                    add_weighted(low + high, values, scales, floats(row, width))
                else:
                    values = four_rows(addresses, width, np.float32)
                    add_weighted(low + high, values, scales, floats(row, width))


@compiled
def _softmax(slots, scores, maxima, sums):
    """Each query's scores become exp(score - maximum), and 0 where there is no slot."""
    for query in range(maxima.shape[0]):
        maximum = row_max(scores[query, :slots])
        maxima[query], sums[query] = maximum, exp_row(scores[query, :slots], maximum, _ONE)
        scores[query, slots:] = _ZERO


@compiled
def _attend_block(job, chunk):
    """Compute the result of one block of the slots of one row."""
    heads, width = load(job + HEADS), load(job + HEAD_DIM)
    row, start = chunk // load(job + BLOCKS), chunk % load(job + BLOCKS) * BLOCK
    slots = min(used_slots(job, row) - start, BLOCK)
    if slots <= 0:
        return
    first, block = row * load(job + CAPACITY) + start, block_result(job, chunk)
    values = block + 8 * heads
    weights = values + 4 * heads * width
    _compute_scores(job, first, slots, load(job + Q) + 4 * row * heads * width, weights)
    scores = carray(pointer(weights), (heads, BLOCK), np.float32)
    _softmax(slots, scores, floats(block, heads), floats(block + 4 * heads, heads))
    _sum_values(job, first, slots, weights, values)


@compiled
def _combine_blocks(job, row, head):
    """Write the output of one row and query head from the results of its blocks."""
    heads, width = load(job + HEADS), load(job + HEAD_DIM)
    count = (used_slots(job, row) + BLOCK - 1) // BLOCK
    nbytes, first = 4 * result_floats(heads, width), block_result(job, row * load(job + BLOCKS))
    # The values are summed in place of the query, which is not needed any more.
    combined = floats(load(job + Q) + 4 * (row * heads + head) * width, width)
    maximum = floats(first + 4 * head, 1)[0]
    for index in range(1, count):
        maximum = max(maximum, floats(first + index * nbytes + 4 * head, 1)[0])
    total = _ZERO
    combined[:] = _ZERO
    for index in range(count):
        block = first + index * nbytes
        weight = exp(floats(block + 4 * head, 1)[0] - maximum)
        total += weight * floats(block + 4 * (heads + head), 1)[0]
        values = floats(block + 4 * (2 * heads + head * width), width)
        for i in range(width):
            combined[i] += weight * values[i]
    out = floats(load(job + OUT) + 4 * (row * heads + head) * width, width)
    half = width // 2
    for i in range(half):
        if load(job + CODE) == BFLOAT16:
            out[2 * i], out[2 * i + 1] = combined[i] / total, combined[half + i] / total
        else:
            out[i], out[half + i] = combined[i] / total, combined[half + i] / total


@compiled
def _work(job):
    """Attend to blocks until none is left."""
    chunk = next_chunk(job)
    while chunk >= 0:
        _attend_block(job, chunk)
        chunk_done(job)
        chunk = next_chunk(job)


@c_function(types.void(types.int64))
def _task(job):
    _work(job)
    release(job)


llvm.add_symbol(_TASK, _task.address)


@compiled
def _useful_threads(job, chunks):
    """How many threads have enough to read."""
    numbers = 2 * chunks * BLOCK * load(job + KV_HEADS) * load(job + HEAD_DIM)
    return max(numbers * itemsize(load(job + CODE)) // _MIN_THREAD_BYTES, 1)


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: takes an XLA_FFI_CallFrame and returns 0 for success."""
    if is_metadata_call(frame):
        return 0
    job = new_job(frame)
    rows = dim(argument(frame, 0), 0)
    chunks = rows * load(job + BLOCKS)
    available = n_threads(frame)
    threads = min(available, _useful_threads(job, chunks))
    # A thread without work falls asleep in about the time that this takes and would be late for the
    # product that follows, so one other thread is called in any case, to keep it awake.
    start_workers(frame, _task_address(), job, chunks, threads, min(available - 1, 1))
    _work(job)
    wait_for_all(job)
    for row in range(rows):
        for head in range(load(job + HEADS)):
            _combine_blocks(job, row, head)
    release(job)
    return 0
