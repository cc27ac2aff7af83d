"""What `prompt_kernel` compiles: the attention of many queries, tile by tile.

Keys become panels once a call, and so do values, whose lanes are the head dim. A thread takes some
tokens of all query heads that share a head of keys, and goes over its slots in blocks: scores, weights,
values, with a largest score and a sum that are corrected from block to block (arXiv:2205.14135). Blocks
after the last slot that the tokens may look at are left out.
"""

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types

from .kernel_code import (
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
from .number_code import bfloat16_of, exp, largest, widen
from .tile_code import LANES, TILE_ROWS, multiply_tile_rows, transpose_words

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
def _floats(address, count):
    return carray(pointer(address), (count,), np.float32)


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
        source, to = (
            load(job + field) + place * width * itemsize(stored),
            target + (slot - first) * nbytes,
        )
        if stored == code:
            words = carray(pointer(to), (nbytes // 4,), np.uint32)
            words[:] = carray(pointer(source), (nbytes // 4,), np.uint32)
        else:
            widen(source, stored, to, width, 0)


@compiled
def _pack_keys(job, source, target):
    """Slots as panels, each of LANES slots."""
    nbytes = load(job + _WIDTH) * itemsize(load(job + _CODE))
    for slot in range(0, _PACK_SLOTS, LANES):
        for word in range(0, nbytes // 4, LANES):
            transpose_words(source + slot * nbytes + 4 * word, nbytes, target + LANES * 4 * word)
        target += LANES * nbytes


@compiled
def _pack_values(job, source, target):
    """Slots as panels, each of LANES numbers of the head dim; a word is of two slots, or of one."""
    width, code = load(job + _WIDTH), load(job + _CODE)
    pairs, step = code == BFLOAT16, LANES * itemsize(code) * load(job + _ROOM)
    for number in range(0, width, LANES):
        place = target + number // LANES * step
        if pairs:
            for slot in range(0, _PACK_SLOTS, 2):
                words = carray(pointer(place + 2 * LANES * slot), (LANES,), np.uint32)
                even = carray(pointer(source + 2 * (slot * width + number)), (LANES,), np.uint16)
                odd = carray(
                    pointer(source + 2 * ((slot + 1) * width + number)), (LANES,), np.uint16
                )
                for lane in range(LANES):
                    words[lane] = np.uint32(even[lane]) | (np.uint32(odd[lane]) << np.uint32(16))
        else:
            for slot in range(_PACK_SLOTS):
                words = _floats(place + 4 * LANES * slot, LANES)
                words[:] = _floats(source + 4 * (slot * width + number), LANES)


@compiled
def _pack(job, index, scratch):
    """Some slots of one head, keys and values."""
    packs, kv_heads = load(job + _PACKS), load(job + _KV_HEADS)
    row, head, first = (
        index // packs // kv_heads,
        index // packs % kv_heads,
        index % packs * _PACK_SLOTS,
    )
    used = _used(job, row, 0, load(job + _TURNS))
    if first >= used:
        return
    nbytes = load(job + _WIDTH) * itemsize(load(job + _CODE))
    _copy_slots(job, _K, row, head, first, used, scratch)
    _pack_keys(job, scratch, _panels(job, _KEYS, row, head) + first * nbytes)
    _copy_slots(job, _V, row, head, first, used, scratch)
    _pack_values(
        job, scratch, _panels(job, _VALUES, row, head) + first * itemsize(load(job + _CODE)) * LANES
    )


@compiled
def _score(job, keys, slots, q, tokens, scores):
    """Of each head of a group and its tokens, with the keys of a block: rows of _SLOTS scores."""
    heads, width, code = load(job + _HEADS), load(job + _WIDTH), load(job + _CODE)
    pairs, nbytes = 1 if code == BFLOAT16 else 0, width * itemsize(code)
    left = slots // LANES
    while left > 0:
        count = 2 if left == 4 else min(left, 3)
        for head in range(heads // load(job + _KV_HEADS)):
            for token in range(0, tokens, TILE_ROWS):
                place = q + (token * heads + head) * nbytes
                out = scores + 4 * _SLOTS * (head * _TOKENS + token)
                multiply_tile_rows(
                    pairs,
                    count,
                    keys,
                    LANES * nbytes,
                    place,
                    heads * nbytes,
                    out,
                    4 * _SLOTS,
                    nbytes // 4,
                )
        left -= count
        keys += count * LANES * nbytes
        scores += count * LANES * 4


@compiled
def _mix(job, values, slots, weights, rows, part):
    """The sums of a block's values by rows of _SLOTS weights."""
    width, code = load(job + _WIDTH), load(job + _CODE)
    pairs, size = 1 if code == BFLOAT16 else 0, itemsize(code)
    step = LANES * size * load(job + _ROOM)
    left = width // LANES
    while left > 0:
        count = 2 if left == 4 else min(left, 3)
        for row in range(0, rows, TILE_ROWS):
            place, out = weights + size * _SLOTS * row, part + 4 * width * row
            multiply_tile_rows(
                pairs, count, values, step, place, size * _SLOTS, out, 4 * width, slots * size // 4
            )
        left -= count
        values += count * step
        part += count * LANES * 4


@compiled
def _weigh(scores, factor, most, out, code):
    """e to each score's distance from `most`, as weights; their sum."""
    total = _ZERO
    if code == BFLOAT16:
        narrow = carray(pointer(out), (_SLOTS,), np.uint16)
        for slot in range(scores.shape[0]):
            weight = exp((scores[slot] - most) * factor)
            narrow[slot] = bfloat16_of(weight)
            total += weight
        narrow[scores.shape[0] :] = 0
        return total
    wide = _floats(out, _SLOTS)
    for slot in range(scores.shape[0]):
        weight = exp((scores[slot] - most) * factor)
        wide[slot] = weight
        total += weight
    wide[scores.shape[0] :] = _ZERO
    return total


@compiled
def _soften(job, row, start, tokens, first, slots, scores, weights, sums):
    """The weights of a block, and what its tokens' largest scores, sums and factors are now.

    `sums` are three rows of numbers: the largest scores, the sums, the factors of what was summed before.
    """
    group, code = load(job + _HEADS) // load(job + _KV_HEADS), load(job + _CODE)
    factor, count = _ONE / np.sqrt(np.float32(load(job + _WIDTH))), group * _TOKENS
    peaks, totals = _floats(sums, count), _floats(sums + 4 * count, count)
    factors = _floats(sums + 8 * count, count)
    for token in range(tokens):
        used = min(_used(job, row, start + token, start + token + 1) - first, slots)
        for head in range(group):
            index = head * _TOKENS + token
            place, out = scores + 4 * _SLOTS * index, weights + itemsize(code) * _SLOTS * index
            if used <= 0:
                carray(pointer(out), (itemsize(code) * _SLOTS,), np.uint8)[:] = 0
                factors[index] = _ONE
                if first == 0:
                    totals[index] = _ZERO
                continue
            block = _floats(place, used)
            most = largest(block)
            if first > 0:
                most = max(most, peaks[index])
            total = _weigh(block, factor, most, out, code)
            factors[index] = exp((peaks[index] - most) * factor) if first > 0 else _ZERO
            totals[index] = total + (totals[index] * factors[index] if first > 0 else _ZERO)
            peaks[index] = most


@compiled
def _add(job, rows, first, part, sums, values):
    """A block's values to those of the blocks before."""
    width, count = load(job + _WIDTH), rows
    factors = _floats(sums + 8 * count, count)
    for row in range(rows):
        new, whole = (
            _floats(part + 4 * width * row, width),
            _floats(values + 4 * width * row, width),
        )
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
    totals = _floats(sums + 4 * group * _TOKENS, group * _TOKENS)
    for token in range(tokens):
        for index in range(group):
            source = index * _TOKENS + token
            whole, factor = _floats(values + 4 * width * source, width), _ONE / totals[source]
            place = (
                (row * load(job + _TURNS) + start + token) * heads + head * group + index
            ) * width
            out = load(job + _OUT) + place * itemsize(code)
            if code == BFLOAT16:
                narrow = carray(pointer(out), (width,), np.uint16)
                for i in range(width):
                    narrow[i] = bfloat16_of(whole[i] * factor)
            else:
                wide = _floats(out, width)
                for i in range(width):
                    wide[i] = whole[i] * factor


@compiled
def _attend(job, index, scratch):
    """Some tokens of one row, all heads of one group; the last tokens, which look at most, come first."""
    kv_heads, turns, width = load(job + _KV_HEADS), load(job + _TURNS), load(job + _WIDTH)
    size, heads = itemsize(load(job + _CODE)), load(job + _HEADS)
    count = load(job + _ROWS) * kv_heads
    parts = (turns + _TOKENS - 1) // _TOKENS
    start = (parts - 1 - index // count) * _TOKENS
    row, head = index % count // kv_heads, index % count % kv_heads
    tokens, rows = min(turns - start, _TOKENS), heads // kv_heads * _TOKENS
    weights = scratch + 4 * rows * _SLOTS
    part = weights + size * rows * _SLOTS
    values, sums = part + 4 * rows * width, part + 8 * rows * width
    group = head * (heads // kv_heads)
    q = load(job + _Q) + ((row * turns + start) * heads + group) * width * size
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
    rows, width = load(job + _HEADS) // load(job + _KV_HEADS) * _TOKENS, load(job + _WIDTH)
    size = itemsize(load(job + _CODE))
    return max(rows * ((4 + size) * _SLOTS + 8 * width + 12), size * _PACK_SLOTS * width)


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
