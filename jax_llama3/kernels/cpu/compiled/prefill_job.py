"""The job of `prefill_attention`: what a call is given, and keys and values as panels.

Its chunks are first packs of slots that become panels, then blocks of tokens that attend to them.
"""

import numpy as np
from numba import carray

from .compiler import compiled
from .ffi import argument, data, dim, dtype_code, itemsize, result
from .jobs import JOB_BYTES, allocate_job
from .memory import load, pointer, store
from .tiles import LANES

TOKENS = 16  # of a row, taken by a thread at a time; a multiple of a tile's rows
SLOTS = 256  # of a block, few enough that its scores, panels and weights stay in the thread's cache
PACK_SLOTS = 64  # that a thread packs at a time; panels have room for a multiple of them

# The fields of a job, offsets in bytes.
Q, K, V, POSITIONS, OUT, KEYS, VALUES = range(JOB_BYTES, JOB_BYTES + 56, 8)  # KEYS, VALUES: panels
CODE, CACHE_CODE, NEW, HEADS, KV_HEADS, WIDTH = range(JOB_BYTES + 56, JOB_BYTES + 104, 8)
ROWS, CAPACITY, PANEL_SLOTS, PACKS, _JOB_BYTES = range(JOB_BYTES + 104, JOB_BYTES + 144, 8)


@compiled
def new_job(frame):
    """The job of a call with q, positions, k and v; its results are the output and both panels."""
    q, k = argument(frame, 0), argument(frame, 2)
    job = allocate_job(_JOB_BYTES)
    store(job + Q, data(q))
    store(job + POSITIONS, data(argument(frame, 1)))
    store(job + K, data(k))
    store(job + V, data(argument(frame, 3)))
    store(job + OUT, data(result(frame, 0)))
    store(job + KEYS, data(result(frame, 1)))
    store(job + VALUES, data(result(frame, 2)))
    store(job + CODE, dtype_code(q))
    store(job + CACHE_CODE, dtype_code(k))
    store(job + ROWS, dim(q, 0))
    store(job + NEW, dim(q, 1))
    store(job + HEADS, dim(q, 2))
    store(job + WIDTH, dim(q, 3))
    store(job + CAPACITY, dim(k, 1))
    store(job + KV_HEADS, dim(k, 2))
    store(job + PANEL_SLOTS, dim(result(frame, 1), 1))
    return job


@compiled
def used_slots(job, row, start, stop):
    """How many slots the tokens from `start` to `stop` of a row look at: up to their last position."""
    new = load(job + NEW)
    positions = carray(pointer(load(job + POSITIONS)), ((row + 1) * new,), np.int32)
    last = positions[row * new + start]
    for token in range(start + 1, stop):
        last = max(last, positions[row * new + token])
    return min(np.int64(last) + 1, load(job + CAPACITY))


@compiled
def panels(job, field, row, head):
    """Where the panels of a head's keys or values begin; they take as much room as all its slots."""
    nbytes = load(job + PANEL_SLOTS) * load(job + WIDTH) * itemsize(load(job + CODE))
    return load(job + field) + (row * load(job + KV_HEADS) + head) * nbytes


@compiled
def value_step(job):
    """From one panel of values to the next, in bytes."""
    return LANES * itemsize(load(job + CODE)) * load(job + PANEL_SLOTS)
