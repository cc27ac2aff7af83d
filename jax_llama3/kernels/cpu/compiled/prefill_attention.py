"""Attention of many queries, tile by tile.

Keys and values become panels once a call. A thread then takes a block of tokens of all query heads that
share a head of keys, and goes over its slots in blocks: scores, weights and values, with a maximum and a
sum that are corrected from block to block (arXiv:2205.14135). Blocks after the last slot that the tokens
look at are left out.
"""

import llvmlite.binding as llvm
import numpy as np
from numba import carray, types

from .compiler import c_function, compiled, symbol_address
from .ffi import BFLOAT16, is_metadata_call, itemsize, n_threads
from .jobs import chunk_done, next_chunk, release, start_workers, wait_for_all, wait_for_chunks
from .memory import floats, free, load, malloc, pointer, store
from .numbers import exp, write_numbers
from .panels import panels_at_once
from .prefill_job import (
    CODE,
    HEADS,
    KEYS,
    KV_HEADS,
    NEW,
    OUT,
    PACK_SLOTS,
    PACKS,
    ROWS,
    SLOTS,
    TOKENS,
    VALUES,
    WIDTH,
    Q,
    new_job,
    panels,
    used_slots,
    value_step,
)
from .prefill_panels import pack_slots
from .softmax import exp_row, row_max
from .tiles import LANES, TILE_ROWS, multiply_tile_rows

_TASK = "jax_llama3_prompt_task"

_task_address = symbol_address(_TASK)

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled
def _round_up(number, step):
    """The least multiple of `step` that is no less."""
    return (number + step - 1) // step * step


@compiled
def _compute_scores(job, keys, slots, q, tokens, scores):
    """Write the scores of a group's heads and their tokens with a block of keys: rows of SLOTS."""
    heads, nbytes = load(job + HEADS), load(job + WIDTH) * itemsize(load(job + CODE))
    pairs, words, left = load(job + CODE) == BFLOAT16, nbytes // 4, slots // LANES
    panel, q_step, out_step = LANES * nbytes, heads * nbytes, 4 * SLOTS
    while left > 0:
        count = panels_at_once(left)
        for head in range(heads // load(job + KV_HEADS)):
            for token in range(0, tokens, TILE_ROWS):
                place = q + (token * heads + head) * nbytes
                out = scores + out_step * (head * TOKENS + token)
                multiply_tile_rows(pairs, count, keys, panel, place, q_step, out, out_step, words)
        left -= count
        keys += count * panel
        scores += count * LANES * 4


@compiled
def _sum_values(job, values, slots, weights, rows, out):
    """Write the sums of a block's values by rows of SLOTS weights."""
    size, width, left = itemsize(load(job + CODE)), load(job + WIDTH), load(job + WIDTH) // LANES
    pairs, words = load(job + CODE) == BFLOAT16, slots * size // 4
    panel, step, out_step = value_step(job), size * SLOTS, 4 * width
    while left > 0:
        count = panels_at_once(left)
        for row in range(0, rows, TILE_ROWS):
            place, to = weights + step * row, out + out_step * row
            multiply_tile_rows(pairs, count, values, panel, place, step, to, out_step, words)
        left -= count
        values += count * panel
        out += count * LANES * 4


@compiled
def _online_softmax(job, row, start, tokens, first, slots, scores, weights, statistics):
    """Scores of a block become weights in the dtype of the queries, and the rows' sums are corrected.

    `statistics` are three arrays with a number for each row: its maximum, its sum, and the factor that
    corrects what was summed in the blocks before.
    """
    group, code = load(job + HEADS) // load(job + KV_HEADS), load(job + CODE)
    scale, count = _ONE / np.sqrt(np.float32(load(job + WIDTH))), group * TOKENS
    maxima, sums = floats(statistics, count), floats(statistics + 4 * count, count)
    corrections = floats(statistics + 8 * count, count)
    if first == 0:
        maxima[:] = -np.inf
        sums[:] = _ZERO
    for token in range(tokens):
        used = min(used_slots(job, row, start + token, start + token + 1) - first, slots)
        for index in range(token, count, TOKENS):
            block = floats(scores + 4 * SLOTS * index, slots)
            block[max(used, 0) :] = _ZERO
            corrections[index] = _ONE
            if used > 0:
                maximum = max(row_max(block[:used]), maxima[index])
                corrections[index] = exp((maxima[index] - maximum) * scale)
                corrected = sums[index] * corrections[index]
                sums[index] = corrected + exp_row(block[:used], maximum, scale)
                maxima[index] = maximum
            if weights != scores:
                write_numbers(block, code, weights + itemsize(code) * SLOTS * index)


@compiled
def _accumulate(job, rows, first, block, statistics, values):
    """Add a block's values to those of the blocks before, which are corrected."""
    width, corrections = load(job + WIDTH), floats(statistics + 8 * rows, rows)
    for row in range(rows):
        new, total = floats(block + 4 * width * row, width), floats(values + 4 * width * row, width)
        if first == 0:
            total[:] = new
        else:
            correction = corrections[row]
            for i in range(width):
                total[i] = total[i] * correction + new[i]


@compiled
def _write_output(job, row, start, tokens, head, statistics, values):
    """Write the values over their sums, in the dtype of the queries."""
    heads, width, code = load(job + HEADS), load(job + WIDTH), load(job + CODE)
    group = heads // load(job + KV_HEADS)
    sums = floats(statistics + 4 * group * TOKENS, group * TOKENS)
    for token in range(tokens):
        first = ((row * load(job + NEW) + start + token) * heads + head * group) * width
        for query in range(group):
            index = query * TOKENS + token
            total, factor = floats(values + 4 * width * index, width), _ONE / sums[index]
            for i in range(width):
                total[i] *= factor
            write_numbers(total, code, load(job + OUT) + (first + query * width) * itemsize(code))


@compiled
def _attend(job, index, scratch):
    """Attend from one block of tokens of one row, with all heads of one group.

    The last tokens, which look at most slots, come first, so that no thread has them left at the end.
    """
    heads, kv_heads, new = load(job + HEADS), load(job + KV_HEADS), load(job + NEW)
    width, size, group = load(job + WIDTH), itemsize(load(job + CODE)), heads // kv_heads
    count, parts = load(job + ROWS) * kv_heads, (new + TOKENS - 1) // TOKENS
    start = (parts - 1 - index // count) * TOKENS
    row, head = index % count // kv_heads, index % count % kv_heads
    tokens, rows = min(new - start, TOKENS), group * TOKENS
    block = scratch + 4 * rows * SLOTS
    values, statistics = block + 4 * rows * width, block + 8 * rows * width
    # Weights of float32 take the place of the scores.
    weights = statistics + 12 * rows if load(job + CODE) == BFLOAT16 else scratch
    q = load(job + Q) + ((row * new + start) * heads + head * group) * width * size
    key_panels, value_panels = panels(job, KEYS, row, head), panels(job, VALUES, row, head)
    used = used_slots(job, row, start, start + tokens)
    for first in range(0, max(used, 1), SLOTS):  # a token that looks at nothing gets NaN
        slots = _round_up(max(min(used - first, SLOTS), 1), LANES)
        _compute_scores(job, key_panels + first * width * size, slots, q, tokens, scratch)
        _online_softmax(job, row, start, tokens, first, slots, scratch, weights, statistics)
        _sum_values(job, value_panels + first * size * LANES, slots, weights, rows, block)
        _accumulate(job, rows, first, block, statistics, values)
    _write_output(job, row, start, tokens, head, statistics, values)


@compiled
def _scratch_bytes(job):
    """Room for scores, a block's values, all values, statistics and weights; or for a pack of slots."""
    rows, width = load(job + HEADS) // load(job + KV_HEADS) * TOKENS, load(job + WIDTH)
    return max(rows * (6 * SLOTS + 8 * width + 12), 4 * PACK_SLOTS * width)


@compiled
def _work(job):
    """Pack slots, then attend to them, until no chunk is left."""
    packs = load(job + ROWS) * load(job + KV_HEADS) * load(job + PACKS)
    nbytes = _scratch_bytes(job)
    scratch = malloc(nbytes)
    # The last block may be short of tokens. The rows of those that are missing are multiplied too, so
    # they hold 0 and not whatever the memory held before.
    carray(pointer(scratch), (nbytes,), np.uint8)[:] = 0
    index = next_chunk(job)
    while index >= 0:
        if index < packs:
            pack_slots(job, index, scratch)
        else:
            wait_for_chunks(job, packs)
            _attend(job, index - packs, scratch)
        chunk_done(job)
        index = next_chunk(job)
    free(scratch)


@c_function(types.void(types.int64))
def _task(job):
    _work(job)
    release(job)


llvm.add_symbol(_TASK, _task.address)


@c_function(types.int64(types.int64))
def handler(frame):
    """An XLA_FFI_Handler: takes an XLA_FFI_CallFrame and returns 0 for success."""
    if is_metadata_call(frame):
        return 0
    job = new_job(frame)
    rows, new = load(job + ROWS), load(job + NEW)
    used = 0
    for row in range(rows):
        used = max(used, used_slots(job, row, 0, new))
    store(job + PACKS, (used + PACK_SLOTS - 1) // PACK_SLOTS)
    heads = rows * load(job + KV_HEADS)
    chunks = heads * (load(job + PACKS) + (new + TOKENS - 1) // TOKENS)
    start_workers(frame, _task_address(), job, chunks, n_threads(frame), 0)
    _work(job)
    wait_for_all(job)
    release(job)
    return 0
