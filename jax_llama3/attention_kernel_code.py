"""What `attention_kernel` compiles: one query's attention over the slots that are used.

Slots are taken in blocks. Each block has its own softmax, with its largest score and its sum, and they
are joined at the end (arXiv:2112.05682), so a long row is shared out to several threads.
"""

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types

from .kernel_code import (
    BFLOAT16,
    INT8,
    JOB_BYTES,
    argument,
    c_function,
    compiled,
    compiled_exactly,
    data,
    dim,
    dtype_code,
    float_of,
    give,
    is_question,
    itemsize,
    leave,
    load,
    n_threads,
    new_job,
    pointer,
    result,
    share,
    store,
    symbol_address,
    take,
    wait,
)

_BLOCK = 128  # slots, taken by a thread at a time
_LEAST_BYTES = 1 << 16  # of keys and values; less is not worth a thread
_TASK = "jax_llama3_attention_task"

# The fields of a job, offsets in bytes; q and the parts follow them.
_Q, _POSITIONS, _OUT, _K, _V, _K_SCALE, _V_SCALE = range(JOB_BYTES, JOB_BYTES + 56, 8)
_SCALES = _K_SCALE - _K
_CODE, _CAPACITY, _KV_HEADS, _GROUP, _HEAD_DIM, _BLOCKS, _PARTS = range(_Q + 56, _Q + 112, 8)
_JOB_BYTES = _Q + 112
# The part of one block and key/value head, in floats: of each query of the group the largest score, the
# sum, the values, and a weight for each slot.

_task_address = symbol_address(_TASK)

_ZERO, _ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(-87)  # e to what is less is not a normal number
_HALF, _LOG2_E = np.float32(0.5), np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# 1/2! to 1/7!: within the half of ln 2 on either side of 0 the rest is under 6e-9.
_FACTORS = tuple(np.float32(1 / factorial) for factorial in (5040, 720, 120, 24, 6, 2))


@compiled_exactly
def _exp(x):
    """e to the x of at most 0; NaN stays NaN. Written out, so that a loop over it becomes vectors."""
    safe = x if x > _LEAST else _LEAST
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
    return _ZERO if x <= _LEAST else total if x == x else x


@compiled
def _floats(address, count):
    return carray(pointer(address), (count,), np.float32)


@compiled
def _used(job, row):
    """How many slots a row attends to: those up to its own position."""
    positions = carray(pointer(load(job + _POSITIONS)), (row + 1,), np.int32)
    return min(np.int64(positions[row]) + 1, load(job + _CAPACITY))


@compiled
def _part_floats(group, head_dim):
    return group * (2 + head_dim + _BLOCK)


@compiled
def _part(job, chunk):
    return load(job + _PARTS) + 4 * chunk * _part_floats(load(job + _GROUP), load(job + _HEAD_DIM))


@compiled
def _four(job, field, slot, last):
    """Where four slots of a key/value head begin, and their scales. After the last it comes again."""
    heads, code = load(job + _KV_HEADS), load(job + _CODE)
    first, nbytes = load(job + field), load(job + _HEAD_DIM) * itemsize(code)
    slots = (slot, slot + heads, slot + 2 * heads, slot + 3 * heads)
    slots = (slots[0], min(slots[1], last), min(slots[2], last), min(slots[3], last))
    scales = (_ONE, _ONE, _ONE, _ONE)
    if code == INT8:
        scale = load(job + field + _SCALES)
        scales = (
            _floats(scale + 4 * slots[0], 1)[0],
            _floats(scale + 4 * slots[1], 1)[0],
            _floats(scale + 4 * slots[2], 1)[0],
            _floats(scale + 4 * slots[3], 1)[0],
        )
    places = (
        first + nbytes * slots[0],
        first + nbytes * slots[1],
        first + nbytes * slots[2],
        first + nbytes * slots[3],
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
def _low(word):
    """The first of two bfloat16, which are the upper halves of float32."""
    return float_of(word << np.uint32(16))


@compiled
def _high(word):
    return float_of(word & np.uint32(0xFFFF0000))


@compiled
def _dots(q, k, scales, out):
    """Of one query with four keys; four, so that each number of the query is read once for them."""
    sum_0 = sum_1 = sum_2 = sum_3 = _ZERO
    for i in range(q.shape[0]):
        sum_0 += q[i] * k[0][i]
        sum_1 += q[i] * k[1][i]
        sum_2 += q[i] * k[2][i]
        sum_3 += q[i] * k[3][i]
    out[0], out[1] = sum_0 * scales[0], sum_1 * scales[1]
    out[2], out[3] = sum_2 * scales[2], sum_3 * scales[3]


@compiled
def _dots_bfloat16(even, odd, k, out):
    sum_0 = sum_1 = sum_2 = sum_3 = _ZERO
    for i in range(even.shape[0]):
        sum_0 += even[i] * _low(k[0][i]) + odd[i] * _high(k[0][i])
        sum_1 += even[i] * _low(k[1][i]) + odd[i] * _high(k[1][i])
        sum_2 += even[i] * _low(k[2][i]) + odd[i] * _high(k[2][i])
        sum_3 += even[i] * _low(k[3][i]) + odd[i] * _high(k[3][i])
    out[0], out[1], out[2], out[3] = sum_0, sum_1, sum_2, sum_3


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
        both = weight_0 * _low(v[0][i]) + weight_1 * _low(v[1][i])
        even[i] += both + weight_2 * _low(v[2][i]) + weight_3 * _low(v[3][i])
        both = weight_0 * _high(v[0][i]) + weight_1 * _high(v[1][i])
        odd[i] += both + weight_2 * _high(v[2][i]) + weight_3 * _high(v[3][i])


@compiled
def _score(job, first, slots, q, out):
    """Of each query of a group with the keys of a block; addresses, the first slot and their number.

    There are as many scores as the next multiple of four; those after `slots` mean nothing.
    """
    heads, group, width = load(job + _KV_HEADS), load(job + _GROUP), load(job + _HEAD_DIM)
    code, half = load(job + _CODE), width // 2
    for start in range(0, slots, 4):
        places, scales = _four(job, _K, first + start * heads, first + (slots - 1) * heads)
        for query in range(group):
            row, scores = q + 4 * query * width, _floats(out + 4 * (query * _BLOCK + start), 4)
            if code == BFLOAT16:
                even, odd = _floats(row, half), _floats(row + 4 * half, half)
                _dots_bfloat16(even, odd, _rows(places, half, np.uint32), scores)
            elif code == INT8:
                _dots(_floats(row, width), _rows(places, width, np.int8), scales, scores)
            else:
                _dots(_floats(row, width), _rows(places, width, np.float32), scales, scores)


@compiled
def _mix(job, first, slots, weights, out):
    """The sum of a block's values by the weights of each query; addresses as in `_score`."""
    heads, group, width = load(job + _KV_HEADS), load(job + _GROUP), load(job + _HEAD_DIM)
    code, half = load(job + _CODE), width // 2
    _floats(out, group * width)[:] = _ZERO
    for start in range(0, slots, 4):
        places, scales = _four(job, _V, first + start * heads, first + (slots - 1) * heads)
        for query in range(group):
            row, four = out + 4 * query * width, _floats(weights + 4 * (query * _BLOCK + start), 4)
            if code == BFLOAT16:
                even, odd = _floats(row, half), _floats(row + 4 * half, half)
                _add_bfloat16(four, _rows(places, half, np.uint32), even, odd)
            elif code == INT8:
                _add(four, _rows(places, width, np.int8), scales, _floats(row, width))
            else:
                _add(four, _rows(places, width, np.float32), scales, _floats(row, width))


@compiled
def _soften(slots, scores, largest, sums):
    """Scores become weights, e to their distance from the largest; those of no slot become 0."""
    for query in range(largest.shape[0]):
        most = scores[query, 0]
        for slot in range(1, slots):
            most = max(most, scores[query, slot])
        total = _ZERO
        for slot in range(slots):
            weight = _exp(scores[query, slot] - most)
            scores[query, slot] = weight
            total += weight
        scores[query, slots:] = _ZERO
        largest[query], sums[query] = most, total


@compiled
def _attend(job, chunk):
    """One block of the slots of one row and key/value head."""
    heads, group, width = load(job + _KV_HEADS), load(job + _GROUP), load(job + _HEAD_DIM)
    blocks = load(job + _BLOCKS)
    index, start = chunk // blocks, chunk % blocks * _BLOCK
    row, head = index // heads, index % heads
    slots = min(_used(job, row) - start, _BLOCK)
    if slots <= 0:
        return
    first = (row * load(job + _CAPACITY) + start) * heads + head
    part = _part(job, chunk)
    largest, sums = _floats(part, group), _floats(part + 4 * group, group)
    values = part + 8 * group
    weights = values + 4 * group * width
    _score(job, first, slots, load(job + _Q) + 4 * index * group * width, weights)
    scores = carray(pointer(weights), (group, _BLOCK), np.float32)
    _soften(slots, scores, largest, sums)
    _mix(job, first, slots, weights, values)


@compiled
def _join(job, index):
    """The parts of one row and key/value head, weighed by their sums, become its values."""
    group, width = load(job + _GROUP), load(job + _HEAD_DIM)
    blocks = load(job + _BLOCKS)
    count = (_used(job, index // load(job + _KV_HEADS)) + _BLOCK - 1) // _BLOCK
    nbytes, first = 4 * _part_floats(group, width), _part(job, index * blocks)
    joined = _floats(load(job + _Q) + 4 * index * group * width, width)  # q is not needed any more
    for query in range(group):
        most = _floats(first + 4 * query, 1)[0]
        for block in range(1, count):
            most = max(most, _floats(first + block * nbytes + 4 * query, 1)[0])
        total = _ZERO
        joined[:] = _ZERO
        for block in range(count):
            part = first + block * nbytes
            weight = _exp(_floats(part + 4 * query, 1)[0] - most)
            total += weight * _floats(part + 4 * (group + query), 1)[0]
            values = _floats(part + 4 * (2 * group + query * width), width)
            for i in range(width):
                joined[i] += weight * values[i]
        out = _floats(load(job + _OUT) + 4 * (index * group + query) * width, width)
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
        old = _floats(q + 4 * index * width, width)
        new = _floats(load(job + _Q) + 4 * index * width, width)
        for i in range(half):
            if load(job + _CODE) == BFLOAT16:
                new[i], new[half + i] = old[2 * i] * factor, old[2 * i + 1] * factor
            else:
                new[i], new[half + i] = old[i] * factor, old[half + i] * factor


@compiled
def _new_job(frame):
    """What the call's buffers hold: q, positions, k, v, and for int8 the scales of k and v."""
    q, k = argument(frame, 0), argument(frame, 2)
    rows, heads, width = dim(q, 0), dim(k, 2), dim(k, 3)
    group, capacity = dim(q, 2) // heads, dim(k, 1)
    positions = carray(pointer(data(argument(frame, 1))), (rows,), np.int32)
    most = np.int64(positions.max()) + 1
    blocks = (min(most, capacity) + _BLOCK - 1) // _BLOCK
    parts = _JOB_BYTES + 4 * rows * heads * group * width
    job = new_job(parts + 4 * rows * heads * blocks * _part_floats(group, width))
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
    store(job + _KV_HEADS, heads)
    store(job + _GROUP, group)
    store(job + _HEAD_DIM, width)
    store(job + _BLOCKS, blocks)
    store(job + _PARTS, job + parts)
    _arrange(job, data(q), rows * heads * group)
    return job


@compiled
def _useful_threads(frame, job, chunks):
    slots = chunks * _BLOCK  # of one key/value head
    nbytes = 2 * slots * load(job + _HEAD_DIM) * itemsize(load(job + _CODE))
    return min(n_threads(frame), max(nbytes // _LEAST_BYTES, 1))


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: of an XLA_FFI_CallFrame, 0 for success."""
    if is_question(frame):
        return 0
    job = _new_job(frame)
    pairs = dim(argument(frame, 0), 0) * load(job + _KV_HEADS)
    chunks = pairs * load(job + _BLOCKS)
    share(frame, _task_address(), job, chunks, _useful_threads(frame, job, chunks))
    _work(job)
    wait(job)
    for index in range(pairs):
        _join(job, index)
    leave(job)
    return 0
