"""The job of `decode_attention`: what a call is given, its scaled queries and a result for every block.

A chunk of the job is one block of the slots of one row.
"""

import numpy as np
from numba import carray

from .compiler import compiled
from .ffi import BFLOAT16, INT8, argument, data, dim, dtype_code, result
from .jobs import JOB_BYTES, allocate_job
from .memory import floats, load, pointer, store

BLOCK = 64  # slots of all heads, taken by a thread at a time; a multiple of four

# The fields of a job, offsets in bytes; the queries and the results of the blocks follow them.
Q, POSITIONS, OUT, K, V, K_SCALE, V_SCALE = range(JOB_BYTES, JOB_BYTES + 56, 8)
SCALES = K_SCALE - K  # from the field of keys or values to that of their scales
CODE, CAPACITY, HEADS, KV_HEADS, HEAD_DIM, BLOCKS, RESULTS = range(Q + 56, Q + 112, 8)
_FIELD_BYTES = Q + 112


@compiled
def result_floats(heads, head_dim):
    """How many floats the result of one block takes.

    They are, of each query head: the largest score, the sum of the weights, the weighted sum of the
    values, and a weight for every slot.
    """
    return heads * (2 + head_dim + BLOCK)


@compiled
def block_result(job, chunk):
    """The address of the result of one block."""
    return load(job + RESULTS) + 4 * chunk * result_floats(load(job + HEADS), load(job + HEAD_DIM))


@compiled
def used_slots(job, row):
    """How many slots a row attends to: those up to its own position."""
    positions = carray(pointer(load(job + POSITIONS)), (row + 1,), np.int32)
    return min(np.int64(positions[row]) + 1, load(job + CAPACITY))


@compiled
def _scale_queries(job, q, count):
    """Write the queries over sqrt(head dim), for bfloat16 keys with the even places before the odd."""
    width = load(job + HEAD_DIM)
    half = width // 2
    factor = np.float32(1) / np.sqrt(np.float32(width))
    for index in range(count):
        old = floats(q + 4 * index * width, width)
        new = floats(load(job + Q) + 4 * index * width, width)
        for i in range(half):
            if load(job + CODE) == BFLOAT16:
                new[i], new[half + i] = old[2 * i] * factor, old[2 * i + 1] * factor
            else:
                new[i], new[half + i] = old[i] * factor, old[half + i] * factor


@compiled
def new_job(frame):
    """The job of a call with q, positions, k, v, and for int8 the scales of k and v."""
    q, k = argument(frame, 0), argument(frame, 2)
    rows, heads, width, capacity = dim(q, 0), dim(q, 2), dim(q, 3), dim(k, 1)
    positions = carray(pointer(data(argument(frame, 1))), (rows,), np.int32)
    most = np.int64(positions.max()) + 1
    blocks = (min(most, capacity) + BLOCK - 1) // BLOCK
    results = _FIELD_BYTES + 4 * rows * heads * width
    job = allocate_job(results + 4 * rows * blocks * result_floats(heads, width))
    store(job + Q, job + _FIELD_BYTES)
    store(job + POSITIONS, data(argument(frame, 1)))
    store(job + OUT, data(result(frame, 0)))
    store(job + K, data(k))
    store(job + V, data(argument(frame, 3)))
    store(job + CODE, dtype_code(k))
    if dtype_code(k) == INT8:
        store(job + K_SCALE, data(argument(frame, 4)))
        store(job + V_SCALE, data(argument(frame, 5)))
    store(job + CAPACITY, capacity)
    store(job + HEADS, heads)
    store(job + KV_HEADS, dim(k, 2))
    store(job + HEAD_DIM, width)
    store(job + BLOCKS, blocks)
    store(job + RESULTS, job + results)
    _scale_queries(job, data(q), rows * heads)
    return job
