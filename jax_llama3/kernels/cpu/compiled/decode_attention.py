"""What `attention_kernel` compiles: one query's attention over the slots that are used.

Slots are taken in blocks. Each block has its own softmax, with its largest score and its sum, and they
are joined at the end (arXiv:2112.05682), so a long row is shared out to several threads.
"""

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
    floats,
    give,
    is_question,
    itemsize,
    leave,
    load,
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
from .numbers import exp, largest, weigh

_BLOCK = 64  # slots of all heads, taken by a thread at a time; four times a whole number
_LEAST_BYTES = 1 << 16  # of keys and values; less is not worth a thread
_TASK = "jax_llama3_attention_task"

# The fields of a job, offsets in bytes; q and the parts follow them.
_Q, _POSITIONS, _OUT, _K, _V, _K_SCALE, _V_SCALE = range(JOB_BYTES, JOB_BYTES + 56, 8)
_SCALES = _K_SCALE - _K
_CODE, _CAPACITY, _HEADS, _KV_HEADS, _HEAD_DIM, _BLOCKS, _PARTS = range(_Q + 56, _Q + 112, 8)
_JOB_BYTES = _Q + 112
# The part of one block of a row, in floats: of each query head the largest score and the sum, then of
# each its values, then of each a weight for every slot.

_task_address = symbol_address(_TASK)

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def _used(job, row):
    """How many slots a row attends to: those up to its own position."""
    positions = carray(pointer(load(job + _POSITIONS)), (row + 1,), np.int32)
    return min(np.int64(positions[row]) + 1, load(job + _CAPACITY))


@compiled
def _part_floats(heads, head_dim):
    return heads * (2 + head_dim + _BLOCK)


@compiled
def _part(job, chunk):
    return load(job + _PARTS) + 4 * chunk * _part_floats(load(job + _HEADS), load(job + _HEAD_DIM))


@compiled
def _four(job, field, first, slots, step, head):
    """Where one head of four slots of a block begins, and their scales.

    They are a quarter of the block apart: a core reads four streams faster than one. After the last
    slot it comes again.
    """
    kv_heads, code = load(job + _KV_HEADS), load(job + _CODE)
    quarter, nbytes = (slots + 3) // 4, load(job + _HEAD_DIM) * itemsize(code)
    place_0 = (first + step) * kv_heads + head
    place_1 = (first + min(step + quarter, slots - 1)) * kv_heads + head
    place_2 = (first + min(step + 2 * quarter, slots - 1)) * kv_heads + head
    place_3 = (first + min(step + 3 * quarter, slots - 1)) * kv_heads + head
    scales = (_ONE, _ONE, _ONE, _ONE)
    if code == INT8:
        every = load(job + field + _SCALES)
        scales = (
            floats(every + 4 * place_0, 1)[0],
            floats(every + 4 * place_1, 1)[0],
            floats(every + 4 * place_2, 1)[0],
            floats(every + 4 * place_3, 1)[0],
        )
    base = load(job + field)
    places = (
        base + nbytes * place_0,
        base + nbytes * place_1,
        base + nbytes * place_2,
        base + nbytes * place_3,
    )
    return places, scales


@compiled
def _rows(places, count, dtype):
    return (
        carray(pointer(places[0]), (count,), dtype),
        carray(pointer(places[1]), (count,), dtype),
        carray(pointer(places[2]), (count,), dtype),
        carray(pointer(places[3]), (count,), dtype),
    )


@compiled
def _dots(q, k, scales):
    """Of one query with four keys."""
    sum_0 = sum_1 = sum_2 = sum_3 = _ZERO
    for i in range(q.shape[0]):
        sum_0 += q[i] * k[0][i]
        sum_1 += q[i] * k[1][i]
        sum_2 += q[i] * k[2][i]
        sum_3 += q[i] * k[3][i]
    return sum_0 * scales[0], sum_1 * scales[1], sum_2 * scales[2], sum_3 * scales[3]


@compiled
def _dots_bfloat16(even, odd, k):
    sum_0 = sum_1 = sum_2 = sum_3 = _ZERO
    for i in range(even.shape[0]):
        sum_0 += even[i] * even_bfloat16(k[0][i]) + odd[i] * odd_bfloat16(k[0][i])
        sum_1 += even[i] * even_bfloat16(k[1][i]) + odd[i] * odd_bfloat16(k[1][i])
        sum_2 += even[i] * even_bfloat16(k[2][i]) + odd[i] * odd_bfloat16(k[2][i])
        sum_3 += even[i] * even_bfloat16(k[3][i]) + odd[i] * odd_bfloat16(k[3][i])
    return sum_0, sum_1, sum_2, sum_3


@compiled
def _add(weights, v, scales, out):
    """Four values by their weights, added to the values of one query."""
    weight_0, weight_1 = weights[0] * scales[0], weights[1] * scales[1]
    weight_2, weight_3 = weights[2] * scales[2], weights[3] * scales[3]
    for i in range(out.shape[0]):
        both = weight_0 * v[0][i] + weight_1 * v[1][i]
        out[i] += both + weight_2 * v[2][i] + weight_3 * v[3][i]


@compiled
def _add_bfloat16(weights, v, even, odd):
    weight_0, weight_1, weight_2, weight_3 = weights[0], weights[1], weights[2], weights[3]
    for i in range(even.shape[0]):
        both = weight_0 * even_bfloat16(v[0][i]) + weight_1 * even_bfloat16(v[1][i])
        even[i] += both + weight_2 * even_bfloat16(v[2][i]) + weight_3 * even_bfloat16(v[3][i])
        both = weight_0 * odd_bfloat16(v[0][i]) + weight_1 * odd_bfloat16(v[1][i])
        odd[i] += both + weight_2 * odd_bfloat16(v[2][i]) + weight_3 * odd_bfloat16(v[3][i])


@compiled
def _score(job, first, slots, q, out):
    """Of each query with the keys of a block: addresses, the number of its first slot, and its slots.

    There are as many scores as the next multiple of four; those after `slots` mean nothing.
    """
    kv_heads, width, code = load(job + _KV_HEADS), load(job + _HEAD_DIM), load(job + _CODE)
    group, half, quarter = load(job + _HEADS) // kv_heads, width // 2, (slots + 3) // 4
    for step in range(quarter):
        for head in range(kv_heads):
            places, scales = _four(job, _K, first, slots, step, head)
            for query in range(head * group, (head + 1) * group):
                row, scores = q + 4 * query * width, floats(out + 4 * query * _BLOCK, _BLOCK)
                if code == BFLOAT16:
                    even, odd = floats(row, half), floats(row + 4 * half, half)
                    four = _dots_bfloat16(even, odd, _rows(places, half, np.uint32))
                elif code == INT8:
                    four = _dots(floats(row, width), _rows(places, width, np.int8), scales)
                else:
                    four = _dots(floats(row, width), _rows(places, width, np.float32), scales)
                scores[step], scores[step + quarter] = four[0], four[1]
                scores[step + 2 * quarter], scores[step + 3 * quarter] = four[2], four[3]


@compiled
def _mix(job, first, slots, every, out):
    """The sum of a block's values by the weights of each query; addresses as in `_score`."""
    kv_heads, width, code = load(job + _KV_HEADS), load(job + _HEAD_DIM), load(job + _CODE)
    group, half, quarter = load(job + _HEADS) // kv_heads, width // 2, (slots + 3) // 4
    floats(out, kv_heads * group * width)[:] = _ZERO
    for step in range(quarter):
        for head in range(kv_heads):
            places, scales = _four(job, _V, first, slots, step, head)
            for query in range(head * group, (head + 1) * group):
                row, weights = out + 4 * query * width, floats(every + 4 * query * _BLOCK, _BLOCK)
                low = (weights[step], weights[step + quarter])
                high = (weights[step + 2 * quarter], weights[step + 3 * quarter])
                if code == BFLOAT16:
                    even, odd = floats(row, half), floats(row + 4 * half, half)
                    _add_bfloat16(low + high, _rows(places, half, np.uint32), even, odd)
                elif code == INT8:
                    rows = _rows(places, width, np.int8)
                    _add(low + high, rows, scales, floats(row, width))
                else:
                    rows = _rows(places, width, np.float32)
                    _add(low + high, rows, scales, floats(row, width))


@compiled
def _soften(slots, scores, peaks, sums):
    """Scores become weights, e to their distance from the largest; those of no slot become 0."""
    for query in range(peaks.shape[0]):
        most = largest(scores[query, :slots])
        peaks[query], sums[query] = most, weigh(scores[query, :slots], most, _ONE)
        scores[query, slots:] = _ZERO


@compiled
def _attend(job, chunk):
    """One block of the slots of one row."""
    heads, width = load(job + _HEADS), load(job + _HEAD_DIM)
    row, start = chunk // load(job + _BLOCKS), chunk % load(job + _BLOCKS) * _BLOCK
    slots = min(_used(job, row) - start, _BLOCK)
    if slots <= 0:
        return
    first, part = row * load(job + _CAPACITY) + start, _part(job, chunk)
    values = part + 8 * heads
    weights = values + 4 * heads * width
    _score(job, first, slots, load(job + _Q) + 4 * row * heads * width, weights)
    scores = carray(pointer(weights), (heads, _BLOCK), np.float32)
    _soften(slots, scores, floats(part, heads), floats(part + 4 * heads, heads))
    _mix(job, first, slots, weights, values)


@compiled
def _join(job, row, head):
    """The parts of one row and query head, weighed by their sums, become its values."""
    heads, width = load(job + _HEADS), load(job + _HEAD_DIM)
    count = (_used(job, row) + _BLOCK - 1) // _BLOCK
    nbytes, first = 4 * _part_floats(heads, width), _part(job, row * load(job + _BLOCKS))
    # In place of the query, which is not needed any more.
    joined = floats(load(job + _Q) + 4 * (row * heads + head) * width, width)
    most = floats(first + 4 * head, 1)[0]
    for block in range(1, count):
        most = max(most, floats(first + block * nbytes + 4 * head, 1)[0])
    total = _ZERO
    joined[:] = _ZERO
    for block in range(count):
        part = first + block * nbytes
        weight = exp(floats(part + 4 * head, 1)[0] - most)
        total += weight * floats(part + 4 * (heads + head), 1)[0]
        values = floats(part + 4 * (2 * heads + head * width), width)
        for i in range(width):
            joined[i] += weight * values[i]
    out = floats(load(job + _OUT) + 4 * (row * heads + head) * width, width)
    half = width // 2
    for i in range(half):
        if load(job + _CODE) == BFLOAT16:
            out[2 * i], out[2 * i + 1] = joined[i] / total, joined[half + i] / total
        else:
            out[i], out[half + i] = joined[i] / total, joined[half + i] / total


@compiled
def _work(job):
    """Take blocks until none is left."""
    chunk = take(job)
    while chunk >= 0:
        _attend(job, chunk)
        give(job)
        chunk = take(job)


@c_function(types.void(types.int64))
def _task(job):
    _work(job)
    leave(job)


llvm.add_symbol(_TASK, _task.address)


@compiled
def _arrange(job, q, count):
    """A copy of the queries, over the root of the head dim, in the order in which keys are widened."""
    width = load(job + _HEAD_DIM)
    half = width // 2
    factor = _ONE / np.sqrt(np.float32(width))
    for index in range(count):
        old = floats(q + 4 * index * width, width)
        new = floats(load(job + _Q) + 4 * index * width, width)
        for i in range(half):
            if load(job + _CODE) == BFLOAT16:
                new[i], new[half + i] = old[2 * i] * factor, old[2 * i + 1] * factor
            else:
                new[i], new[half + i] = old[i] * factor, old[half + i] * factor


@compiled
def _new_job(frame):
    """What the call's buffers hold: q, positions, k, v, and for int8 the scales of k and v."""
    q, k = argument(frame, 0), argument(frame, 2)
    rows, heads, width, capacity = dim(q, 0), dim(q, 2), dim(q, 3), dim(k, 1)
    positions = carray(pointer(data(argument(frame, 1))), (rows,), np.int32)
    most = np.int64(positions.max()) + 1
    blocks = (min(most, capacity) + _BLOCK - 1) // _BLOCK
    parts = _JOB_BYTES + 4 * rows * heads * width
    job = new_job(parts + 4 * rows * blocks * _part_floats(heads, width))
    store(job + _Q, job + _JOB_BYTES)
    store(job + _POSITIONS, data(argument(frame, 1)))
    store(job + _OUT, data(result(frame, 0)))
    store(job + _K, data(k))
    store(job + _V, data(argument(frame, 3)))
    store(job + _CODE, dtype_code(k))
    if dtype_code(k) == INT8:
        store(job + _K_SCALE, data(argument(frame, 4)))
        store(job + _V_SCALE, data(argument(frame, 5)))
    store(job + _CAPACITY, capacity)
    store(job + _HEADS, heads)
    store(job + _KV_HEADS, dim(k, 2))
    store(job + _HEAD_DIM, width)
    store(job + _BLOCKS, blocks)
    store(job + _PARTS, job + parts)
    _arrange(job, data(q), rows * heads)
    return job


@compiled
def _useful_threads(job, chunks):
    numbers = 2 * chunks * _BLOCK * load(job + _KV_HEADS) * load(job + _HEAD_DIM)
    return max(numbers * itemsize(load(job + _CODE)) // _LEAST_BYTES, 1)


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: of an XLA_FFI_CallFrame, 0 for success."""
    if is_question(frame):
        return 0
    job = _new_job(frame)
    rows = dim(argument(frame, 0), 0)
    chunks = rows * load(job + _BLOCKS)
    available = n_threads(frame)
    threads = min(available, _useful_threads(job, chunks))
    # A thread without work falls asleep in about the time that this takes, and would be late for the
    # product that follows: one is called, so that it is awake.
    share(frame, _task_address(), job, chunks, threads, min(available - 1, 1))
    _work(job)
    wait(job)
    for row in range(rows):
        for head in range(load(job + _HEADS)):
            _join(job, row, head)
    leave(job)
    return 0
