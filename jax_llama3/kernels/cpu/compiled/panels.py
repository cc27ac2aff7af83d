"""Panels: rows in the order in which a tile reads them."""

import numpy as np
from numba import carray

from .compiler import compiled
from .memory import floats, pointer
from .tiles import LANES, transpose_words


@compiled
def panels_at_once(left):
    """How many panels go into the next tile.

    At most three do. Four left become two and two, because a tile of one panel is slow.
    """
    return 2 if left == 4 else min(left, 3)


@compiled
def pack_rows(source, nbytes, target):
    """Write LANES rows of `nbytes` each as a panel, whose lanes are the rows."""
    for place in range(0, nbytes, 4 * LANES):
        transpose_words(source + place, nbytes, target + LANES * place)


@compiled
def pack_columns(source, width, rows, pairs, target, step):
    """Write rows as panels whose lanes are columns, `step` bytes from one panel to the next.

    A word holds the bfloat16 of two rows if `pairs`, else the float32 of one.
    """
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
