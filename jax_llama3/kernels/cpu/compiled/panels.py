"""Rows as the panels that `tile_code` multiplies by, for the kernels that go tile by tile."""

import numpy as np
from numba import carray

from .ffi import compiled, floats, pointer
from .tiles import LANES, transpose_words


@compiled
def panels_at_once(left):
    """How many of the panels that are left go into the next tile: two are faster than one."""
    return 2 if left == 4 else min(left, 3)


@compiled
def pack_rows(source, nbytes, target):
    """LANES rows of so many bytes as a panel; its lanes are the rows."""
    for place in range(0, nbytes, 4 * LANES):
        transpose_words(source + place, nbytes, target + LANES * place)


@compiled
def pack_columns(source, width, rows, pairs, target, step):
    """Rows as panels, `step` bytes apart, each of LANES columns; a word is of two rows, or of one."""
    for column in range(0, width, LANES):
        for row in range(0, rows, 2 if pairs else 1):
            place = row * width + column
            if pairs:
                even = carray(pointer(source + 2 * place), (LANES,), np.uint16)
                odd = carray(pointer(source + 2 * (place + width)), (LANES,), np.uint16)
                words = carray(pointer(target + 2 * LANES * row), (LANES,), np.uint32)
                for lane in range(LANES):
                    words[lane] = np.uint32(even[lane]) | (np.uint32(odd[lane]) << np.uint32(16))
            else:
                floats(target + 4 * LANES * row, LANES)[:] = floats(source + 4 * place, LANES)
        target += step
