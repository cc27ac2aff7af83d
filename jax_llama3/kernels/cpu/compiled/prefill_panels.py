"""The slots of a cache as panels for `prefill_attention`.

The lanes of a panel of keys are slots, those of a panel of values are numbers of the head dim.
"""

import numpy as np
from numba import carray

from .compiler import compiled
from .ffi import BFLOAT16, itemsize
from .memory import load, pointer
from .numbers import widen
from .panels import pack_columns, pack_rows
from .prefill_job import (
    CACHE_CODE,
    CAPACITY,
    CODE,
    KEYS,
    KV_HEADS,
    NEW,
    PACK_SLOTS,
    PACKS,
    VALUES,
    WIDTH,
    K,
    V,
    panels,
    used_slots,
    value_step,
)
from .tiles import LANES


@compiled
def pack_slots(job, index, scratch):
    """Write one pack of slots of one head of keys and values as panels."""
    packs, kv_heads, width = load(job + PACKS), load(job + KV_HEADS), load(job + WIDTH)
    owner, first = index // packs, index % packs * PACK_SLOTS
    row, head = owner // kv_heads, owner % kv_heads
    used, code = used_slots(job, row, 0, load(job + NEW)), load(job + CODE)
    if first >= used:
        return
    nbytes = width * itemsize(code)
    _copy_slots(job, K, row, head, first, used, scratch)
    keys = panels(job, KEYS, row, head) + first * nbytes
    for slot in range(0, PACK_SLOTS, LANES):
        pack_rows(scratch + slot * nbytes, nbytes, keys + slot * nbytes)
    _copy_slots(job, V, row, head, first, used, scratch)
    values = panels(job, VALUES, row, head) + first * itemsize(code) * LANES
    pack_columns(scratch, width, PACK_SLOTS, code == BFLOAT16, values, value_step(job))


@compiled
def _copy_slots(job, field, row, head, first, used, target):
    """Copy PACK_SLOTS slots of a head one after the other; those that are not used become 0."""
    width, code, stored = load(job + WIDTH), load(job + CODE), load(job + CACHE_CODE)
    kv_heads, nbytes = load(job + KV_HEADS), width * itemsize(code)
    carray(pointer(target), (PACK_SLOTS * nbytes,), np.uint8)[:] = 0
    for slot in range(first, min(first + PACK_SLOTS, used)):
        place = (row * load(job + CAPACITY) + slot) * kv_heads + head
        source = load(job + field) + place * width * itemsize(stored)
        if stored == code:
            words = carray(pointer(target), (nbytes // 4,), np.uint32)
            words[:] = carray(pointer(source), (nbytes // 4,), np.uint32)
        else:
            widen(source, stored, target, width, 0)
        target += nbytes
