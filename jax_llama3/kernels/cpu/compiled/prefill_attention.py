"""What `prompt_kernel` compiles: the attention of many queries, tile by tile.

Keys become panels once a call, and so do values, whose lanes are the head dim. A thread takes some
tokens of all query heads that share a head of keys, and goes over its slots in blocks: scores, weights,
values, with a largest score and a sum that are corrected from block to block (arXiv:2205.14135). Blocks
after the last slot that the tokens may look at are left out.
"""

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types

from .ffi import (
    BFLOAT16,
    JOB_BYTES,
    argument,
    c_function,
    compiled,
    data,
    dim,
    dtype_code,
    floats,
    free,
    give,
    is_question,
    itemsize,
    leave,
    load,
    malloc,
    n_threads,
    new_job,
    pointer,
    result,
    share,
    store,
    symbol_address,
    take,
    wait,
    wait_for,
)
from .numbers import exp, largest, weigh, widen, write_numbers
from .panels import pack_columns, pack_rows, panels_at_once
from .tiles import LANES, TILE_ROWS, multiply_tile_rows

_TOKENS = 16  # of a row, taken by a thread at a time: whole tiles
_SLOTS = 256  # of a block: its scores, panels and weights stay in the thread's cache
_PACK_SLOTS = 64  # packed by a thread at a time; there is room for whole packs
_TASK = "jax_llama3_prompt_task"

# The fields of a job, offsets in bytes.
_Q, _K, _V, _POSITIONS, _OUT, _KEYS, _VALUES = range(JOB_BYTES, JOB_BYTES + 56, 8)
_CODE, _STORED, _TURNS, _HEADS, _KV_HEADS, _WIDTH = range(JOB_BYTES + 56, JOB_BYTES + 104, 8)
_ROWS, _CAPACITY, _ROOM, _PACKS, _JOB_BYTES = range(JOB_BYTES + 104, JOB_BYTES + 144, 8)

_task_address = symbol_address(_TASK)

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def _up(number, step):
    """The next multiple."""
    return (number + step - 1) // step * step


@compiled
def _used(job, row, start, stop):
    """How many slots the tokens from `start` to `stop` of a row look at."""
    turns = load(job + _TURNS)
    positions = carray(pointer(load(job + _POSITIONS)), ((row + 1) * turns,), np.int32)
    most = positions[row * turns + start]
    for token in range(start + 1, stop):
        most = max(most, positions[row * turns + token])
    return min(np.int64(most) + 1, load(job + _CAPACITY))


@compiled
def _panels(job, field, row, head):
    """Where the panels of a head's keys or values begin; they take as much room as all its slots."""
    nbytes = load(job + _ROOM) * load(job + _WIDTH) * itemsize(load(job + _CODE))
    return load(job + field) + (row * load(job + _KV_HEADS) + head) * nbytes


@compiled
def _copy_slots(job, field, row, head, first, used, target):
    """_PACK_SLOTS slots of a head, one after the other; those that are not used become 0."""
    width, code, stored = load(job + _WIDTH), load(job + _CODE), load(job + _STORED)
    kv_heads, nbytes = load(job + _KV_HEADS), width * itemsize(code)
    carray(pointer(target), (_PACK_SLOTS * nbytes,), np.uint8)[:] = 0
    for slot in range(first, min(first + _PACK_SLOTS, used)):
        place = (row * load(job + _CAPACITY) + slot) * kv_heads + head
        source = load(job + field) + place * width * itemsize(stored)
        if stored == code:
            words = carray(pointer(target), (nbytes // 4,), np.uint32)
            words[:] = carray(pointer(source), (nbytes // 4,), np.uint32)
        else:
            widen(source, stored, target, width, 0)
        target += nbytes


@compiled
def _pack(job, index, scratch):
    """Some slots of one head: keys as panels of slots, values as panels of numbers of the head dim."""
    packs, kv_heads, width = load(job + _PACKS), load(job + _KV_HEADS), load(job + _WIDTH)
    owner, first = index // packs, index % packs * _PACK_SLOTS
    row, head = owner // kv_heads, owner % kv_heads
    used, code = _used(job, row, 0, load(job + _TURNS)), load(job + _CODE)
    if first >= used:
        return
    nbytes = width * itemsize(code)
    _copy_slots(job, _K, row, head, first, used, scratch)
    keys = _panels(job, _KEYS, row, head) + first * nbytes
    for slot in range(0, _PACK_SLOTS, LANES):
        pack_rows(scratch + slot * nbytes, nbytes, keys + slot * nbytes)
    _copy_slots(job, _V, row, head, first, used, scratch)
    values = _panels(job, _VALUES, row, head) + first * itemsize(code) * LANES
    pack_columns(scratch, width, _PACK_SLOTS, code == BFLOAT16, values, _value_step(job))


@compiled
def _value_step(job):
    """From one panel of values to the next, in bytes."""
    return LANES * itemsize(load(job + _CODE)) * load(job + _ROOM)


@compiled
def _score(job, keys, slots, q, tokens, scores):
    """Of each head of a group and its tokens, with the keys of a block: rows of _SLOTS scores."""
    heads, nbytes = load(job + _HEADS), load(job + _WIDTH) * itemsize(load(job + _CODE))
    pairs, words, left = load(job + _CODE) == BFLOAT16, nbytes // 4, slots // LANES
    panel, q_step, out_step = LANES * nbytes, heads * nbytes, 4 * _SLOTS
    while left > 0:
        count = panels_at_once(left)
        for head in range(heads // load(job + _KV_HEADS)):
            for token in range(0, tokens, TILE_ROWS):
                place = q + (token * heads + head) * nbytes
                out = scores + out_step * (head * _TOKENS + token)
                multiply_tile_rows(pairs, count, keys, panel, place, q_step, out, out_step, words)
        left -= count
        keys += count * panel
        scores += count * LANES * 4


@compiled
def _mix(job, values, slots, weights, rows, out):
    """The sums of a block's values by rows of _SLOTS weights."""
    size, width, left = itemsize(load(job + _CODE)), load(job + _WIDTH), load(job + _WIDTH) // LANES
    pairs, words = load(job + _CODE) == BFLOAT16, slots * size // 4
    panel, step, out_step = _value_step(job), size * _SLOTS, 4 * width
    while left > 0:
        count = panels_at_once(left)
        for row in range(0, rows, TILE_ROWS):
            place, to = weights + step * row, out + out_step * row
            multiply_tile_rows(pairs, count, values, panel, place, step, to, out_step, words)
        left -= count
        values += count * panel
        out += count * LANES * 4


@compiled
def _soften(job, row, start, tokens, first, slots, scores, weights, sums):
    """Scores of a block become weights, written as the queries are, and the rows' sums are corrected.

    `sums` are three lines of numbers, one for each row: its largest score, its sum, and the factor of
    what was summed in the blocks before.
    """
    group, code = load(job + _HEADS) // load(job + _KV_HEADS), load(job + _CODE)
    scale, count = _ONE / np.sqrt(np.float32(load(job + _WIDTH))), group * _TOKENS
    peaks, totals = floats(sums, count), floats(sums + 4 * count, count)
    factors = floats(sums + 8 * count, count)
    if first == 0:
        peaks[:] = -np.inf
        totals[:] = _ZERO
    for token in range(tokens):
        used = min(_used(job, row, start + token, start + token + 1) - first, slots)
        for index in range(token, count, _TOKENS):
            block = floats(scores + 4 * _SLOTS * index, slots)
            block[max(used, 0) :] = _ZERO
            factors[index] = _ONE
            if used > 0:
                most = max(largest(block[:used]), peaks[index])
                factors[index] = exp((peaks[index] - most) * scale)
                totals[index] = totals[index] * factors[index] + weigh(block[:used], most, scale)
                peaks[index] = most
            if weights != scores:
                write_numbers(block, code, weights + itemsize(code) * _SLOTS * index)


@compiled
def _add(job, rows, first, part, sums, values):
    """A block's values to those of the blocks before."""
    width, factors = load(job + _WIDTH), floats(sums + 8 * rows, rows)
    for row in range(rows):
        new, whole = floats(part + 4 * width * row, width), floats(values + 4 * width * row, width)
        if first == 0:
            whole[:] = new
        else:
            factor = factors[row]
            for i in range(width):
                whole[i] = whole[i] * factor + new[i]


@compiled
def _give_out(job, row, start, tokens, head, sums, values):
    """Values over their sums, in the dtype of the queries."""
    heads, width, code = load(job + _HEADS), load(job + _WIDTH), load(job + _CODE)
    group = heads // load(job + _KV_HEADS)
    totals = floats(sums + 4 * group * _TOKENS, group * _TOKENS)
    for token in range(tokens):
        first = ((row * load(job + _TURNS) + start + token) * heads + head * group) * width
        for query in range(group):
            index = query * _TOKENS + token
            whole, factor = floats(values + 4 * width * index, width), _ONE / totals[index]
            for i in range(width):
                whole[i] *= factor
            write_numbers(whole, code, load(job + _OUT) + (first + query * width) * itemsize(code))


@compiled
def _attend(job, index, scratch):
    """Some tokens of one row, all heads of one group; the last tokens, which look at most, come first."""
    heads, kv_heads, turns = load(job + _HEADS), load(job + _KV_HEADS), load(job + _TURNS)
    width, size, group = load(job + _WIDTH), itemsize(load(job + _CODE)), heads // kv_heads
    count, parts = load(job + _ROWS) * kv_heads, (turns + _TOKENS - 1) // _TOKENS
    start = (parts - 1 - index // count) * _TOKENS
    row, head = index % count // kv_heads, index % count % kv_heads
    tokens, rows = min(turns - start, _TOKENS), group * _TOKENS
    part = scratch + 4 * rows * _SLOTS
    values, sums = part + 4 * rows * width, part + 8 * rows * width
    # Weights of float32 take the place of the scores.
    weights = sums + 12 * rows if load(job + _CODE) == BFLOAT16 else scratch
    q = load(job + _Q) + ((row * turns + start) * heads + head * group) * width * size
    keys, mixed = _panels(job, _KEYS, row, head), _panels(job, _VALUES, row, head)
    used = _used(job, row, start, start + tokens)
    for first in range(0, max(used, 1), _SLOTS):  # a token that looks at nothing gets NaN
        slots = _up(max(min(used - first, _SLOTS), 1), LANES)
        _score(job, keys + first * width * size, slots, q, tokens, scratch)
        _soften(job, row, start, tokens, first, slots, scratch, weights, sums)
        _mix(job, mixed + first * size * LANES, slots, weights, rows, part)
        _add(job, rows, first, part, sums, values)
    _give_out(job, row, start, tokens, head, sums, values)


@compiled
def _scratch_bytes(job):
    """Scores, the values of a block and of all, sums and weights; or the slots that are packed."""
    rows, width = load(job + _HEADS) // load(job + _KV_HEADS) * _TOKENS, load(job + _WIDTH)
    return max(rows * (6 * _SLOTS + 8 * width + 12), 4 * _PACK_SLOTS * width)


@compiled
def _work(job):
    """Pack slots, then attend to them, until nothing is left."""
    packs = load(job + _ROWS) * load(job + _KV_HEADS) * load(job + _PACKS)
    nbytes = _scratch_bytes(job)
    scratch = malloc(nbytes)
    # Rows of tokens that are not there are weighed too.
    carray(pointer(scratch), (nbytes,), np.uint8)[:] = 0
    index = take(job)
    while index >= 0:
        if index < packs:
            _pack(job, index, scratch)
        else:
            wait_for(job, packs)
            _attend(job, index - packs, scratch)
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
    """What the call's buffers hold: q, positions, k and v; the values, and room for both panels."""
    q, k = argument(frame, 0), argument(frame, 2)
    job = new_job(_JOB_BYTES)
    store(job + _Q, data(q))
    store(job + _POSITIONS, data(argument(frame, 1)))
    store(job + _K, data(k))
    store(job + _V, data(argument(frame, 3)))
    store(job + _OUT, data(result(frame, 0)))
    store(job + _KEYS, data(result(frame, 1)))
    store(job + _VALUES, data(result(frame, 2)))
    store(job + _CODE, dtype_code(q))
    store(job + _STORED, dtype_code(k))
    store(job + _ROWS, dim(q, 0))
    store(job + _TURNS, dim(q, 1))
    store(job + _HEADS, dim(q, 2))
    store(job + _WIDTH, dim(q, 3))
    store(job + _CAPACITY, dim(k, 1))
    store(job + _KV_HEADS, dim(k, 2))
    store(job + _ROOM, dim(result(frame, 1), 1))
    return job


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: of an XLA_FFI_CallFrame, 0 for success."""
    if is_question(frame):
        return 0
    job = _new_job(frame)
    rows, turns = load(job + _ROWS), load(job + _TURNS)
    used = 0
    for row in range(rows):
        used = max(used, _used(job, row, 0, turns))
    store(job + _PACKS, (used + _PACK_SLOTS - 1) // _PACK_SLOTS)
    heads = rows * load(job + _KV_HEADS)
    chunks = heads * (load(job + _PACKS) + (turns + _TOKENS - 1) // _TOKENS)
    share(frame, _task_address(), job, chunks, n_threads(frame), 0)
    _work(job)
    wait(job)
    leave(job)
    return 0
