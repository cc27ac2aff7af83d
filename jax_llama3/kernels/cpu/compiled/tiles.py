"""Tiles: a few rows of weights times a few panels of x, written as LLVM's vectors.

Of a loop in Python numba keeps no tile of sums in registers, so this one is generated. A word is 32
bits: two bfloat16, or a float32. A panel is the words of LANES rows of x, transposed, so that one vector
holds the same word of every row.
"""

from itertools import chain

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# The features that numba compiles for, which may be fewer than the machine has.
_known = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
_features = set(_known.split(","))
# The LLVM of numba before 0.62 has other names for the functions that are called here.
HAS_FLOATS = {"+avx", "+fma"} <= _features and llvm.llvm_version_info >= (20,)
HAS_PAIRS = "+avx512bf16" in _features  # an instruction for the products of two bfloat16
HAS_TILES = "+amx-bf16" in _features  # instructions for whole tiles, which XLA uses
LANES = 16 if "+avx512f" in _features else 8
TILE_ROWS = LANES // 2  # with three panels 24 sums in 32 registers, or 12 in 16

_INT, _WORD = ir.IntType(64), ir.IntType(32)
_FLOATS, _WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_WORD, LANES)


class _BFloat16(ir.Type):
    """LLVM's type, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _BFloat16)

    def __hash__(self):
        return hash(_BFloat16)


_PAIRS = ir.VectorType(_BFloat16(), 2 * LANES)


def _call(builder, name, *operands):
    """Call one of LLVM's own functions that return a vector of floats."""
    kind = ir.FunctionType(_FLOATS, [each.type for each in operands])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, operands)


def _add_pairs(builder, total, weight, x):
    operands = [builder.bitcast(each, _PAIRS) for each in (weight, x)]
    return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", total, *operands)


def _add_floats(builder, total, weight, x):
    operands = [builder.bitcast(each, _FLOATS) for each in (weight, x)]
    return _call(builder, f"llvm.fma.v{LANES}f32", *operands, total)


def _load(builder, address, kind):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def _store(builder, vector, address):
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=4)


def _prefetch(builder, address):
    """Ask for the rows that come next.

    A processor reads ahead by itself, but not past the end of a page, and a row has only a few pages.
    """
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    numbers = [ir.Constant(_WORD, number) for number in (0, 2, 1)]
    builder.call(function, [builder.inttoptr(address, byte), *numbers])


def _shuffle(builder, first, second, places):
    mask = ir.Constant(ir.VectorType(_WORD, len(places)), places)
    return builder.shuffle_vector(first, second, mask)


def _broadcast(builder, word):
    """A vector of one word."""
    empty = ir.Constant(_WORDS, ir.Undefined)
    vector = builder.insert_element(empty, word, ir.Constant(_WORD, 0))
    return _shuffle(builder, vector, empty, [0] * LANES)


def _transpose(builder, rows):
    """Transpose n vectors of n words: in each step, blocks of `step` words change places over the diagonal."""
    rows, count, step = list(rows), len(rows), 1
    while step < count:
        upper = [i if i & step == 0 else count + i - step for i in range(count)]
        lower = [i + step if i & step == 0 else count + i for i in range(count)]
        for i in range(count):
            if i & step == 0:
                first, second = rows[i], rows[i + step]
                rows[i] = _shuffle(builder, first, second, upper)
                rows[i + step] = _shuffle(builder, first, second, lower)
        step *= 2
    return rows


def _addresses(builder, start, step, count):
    return [builder.add(start, builder.mul(step, ir.Constant(_INT, i))) for i in range(count)]


def _sums(builder, add, panels, rows, next_rows, words):
    """The loop over the words of the rows of weights, which keeps a sum for each row and panel."""
    before, body = builder.basic_block, builder.append_basic_block("words")
    after = builder.append_basic_block("summed")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(_INT)
    sums = [[builder.phi(_FLOATS) for _ in panels] for _ in rows]
    place = builder.mul(index, ir.Constant(_INT, 4 * LANES))
    xs = [_load(builder, builder.add(panel, place), _WORDS) for panel in panels]
    place = builder.mul(index, ir.Constant(_INT, 4))
    ahead = builder.add(next_rows, builder.mul(index, ir.Constant(_INT, 4 * len(rows))))
    _prefetch(builder, ahead)
    longer = []
    for row, totals in zip(rows, sums, strict=True):
        weight = _broadcast(builder, _load(builder, builder.add(row, place), _WORD))
        pairs = zip(totals, xs, strict=True)
        longer.append([add(builder, total, weight, x) for total, x in pairs])
    after_index = builder.add(index, ir.Constant(_INT, 1))
    phis, values = chain([index], *sums), chain([after_index], *longer)
    for phi, value in zip(phis, values, strict=True):
        phi.add_incoming(ir.Constant(phi.type, None), before)
        phi.add_incoming(value, body)
    builder.cbranch(builder.icmp_signed("<", after_index, words), body, after)
    builder.position_at_end(after)
    return longer


def _write_columns(builder, sums, out, out_step):
    """Write a row for every row of x, with its sums for all rows of weights: lanes become rows."""
    for number, columns in enumerate(zip(*sums, strict=True)):
        for half in range(0, LANES, TILE_ROWS):
            lanes = list(range(half, half + TILE_ROWS))
            square = [_shuffle(builder, each, each, lanes) for each in columns]
            first = ir.Constant(_INT, LANES * number + half)
            start = builder.add(out, builder.mul(out_step, first))
            targets = _addresses(builder, start, out_step, TILE_ROWS)
            for found, target in zip(_transpose(builder, square), targets, strict=True):
                _store(builder, found, target)


def _write_rows(builder, sums, out, out_step):
    """Write a row for every row of weights, with its sums for all rows of x, as they lie in vectors."""
    for totals, row in zip(sums, _addresses(builder, out, out_step, TILE_ROWS), strict=True):
        places = _addresses(builder, row, ir.Constant(_INT, 4 * LANES), len(totals))
        for total, place in zip(totals, places, strict=True):
            _store(builder, total, place)


def _tile(write):
    """The code of a tile for both kinds of words and 1 to 3 panels; `write` stores its sums."""

    def generate(context, builder, signature, arguments):
        pairs, n_panels, panel, panel_step, weight, weight_step, out, out_step, words = arguments
        rows = _addresses(builder, weight, weight_step, TILE_ROWS)
        ahead = builder.add(weight, builder.mul(weight_step, ir.Constant(_INT, TILE_ROWS)))
        kinds = [_add_floats, _add_pairs] if HAS_PAIRS else [_add_floats]
        done = builder.append_basic_block("done")
        key = builder.add(builder.mul(pairs, ir.Constant(_INT, 4)), n_panels)
        switch = builder.switch(key, done)
        for kind, add in enumerate(kinds):
            for count in (1, 2, 3):
                block = builder.append_basic_block(f"tile_{kind}_{count}")
                switch.add_case(ir.Constant(_INT, 4 * kind + count), block)
                builder.position_at_end(block)
                panels = _addresses(builder, panel, panel_step, count)
                write(builder, _sums(builder, add, panels, rows, ahead, words), out, out_step)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@intrinsic
def multiply_tile(
    typing, pairs, n_panels, panel, panel_step, weight, weight_step, out, out_step, words
):
    """Multiply TILE_ROWS rows of weights by 1 to 3 panels of x; a row of the result is one of x.

    The words are pairs of bfloat16, or floats; the steps from one row or panel to the next are in bytes.
    """
    return _tile(_write_columns)


@intrinsic
def multiply_tile_rows(
    typing, pairs, n_panels, panel, panel_step, weight, weight_step, out, out_step, words
):
    """`multiply_tile`, but a row of the result is one of the weights."""
    return _tile(_write_rows)


@intrinsic
def transpose_words(typing, source, source_step, target):
    """Write LANES words of LANES rows transposed, row after row."""

    def generate(context, builder, signature, arguments):
        source, source_step, target = arguments
        rows = [
            _load(builder, each, _WORDS) for each in _addresses(builder, source, source_step, LANES)
        ]
        targets = _addresses(builder, target, ir.Constant(_INT, 4 * LANES), LANES)
        for row, place in zip(_transpose(builder, rows), targets, strict=True):
            _store(builder, row, place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
