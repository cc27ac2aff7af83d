"""Small numbers packed into 32-bit words, and scales spread over the numbers that they belong to."""

from collections.abc import Iterable

import numpy as np

FLOATS = ("float32", "float16", "bfloat16")


def unpack(
    words: np.ndarray, bits: int, axis: int, order: Iterable[int] | None = None
) -> np.ndarray:
    """The unsigned numbers of 32-bit words, as float32, which take the words' place along an axis.

    The first number of a word is in its lowest bits. `order` says in which place of the word the first
    number is, in which the second, and so on, if that is not the order of the places. For example
    0x76543210 with 4 bits is 0 1 2 3 4 5 6 7.
    """
    places = np.arange(32 // bits) if order is None else np.array(list(order))
    shifts = (places * bits).astype(np.uint32)
    shifts = np.expand_dims(shifts, 1) if axis == 0 and words.ndim == 2 else shifts
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    numbers = (np.expand_dims(unsigned, axis + 1) >> shifts) & np.uint32((1 << bits) - 1)
    shape = list(words.shape)
    shape[axis] *= len(places)
    return numbers.astype(np.float32).reshape(shape)


def unpack_span(
    words: np.ndarray, bits: int, axis: int, span: range, order: Iterable[int] | None = None
) -> np.ndarray:
    """The numbers of a span along the packed axis; only the words that hold them are read."""
    count = 32 // bits
    first, last = span.start // count, -(-span.stop // count)
    read = words[first:last] if axis == 0 else words[:, first:last]
    cut = slice(span.start - first * count, span.stop - first * count)
    numbers = unpack(np.array(read), bits, axis, order)
    return numbers[cut] if axis == 0 else numbers[:, cut]


def dequantize(
    weights: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """(weight - zero) * scale of a weight's group, with one rounding, to the dtype of the scales.

    Weights are [in out], zeros and scales [groups out], `groups` says for each input in which group it
    is; the result is [out in]. For example weight 9, zero 8, scale 0.5: 0.5.
    """
    shifted = weights.T - zeros.T[:, groups]
    shifted *= scales.T.astype(np.float32)[:, groups]
    return shifted.astype(scales.dtype, copy=False)


def spread(grid: np.ndarray, rows: range, columns: int, block: tuple[int, int]) -> np.ndarray:
    """The numbers of a grid for some rows of a matrix, one number for each block of the matrix.

    They are float32 [rows columns], or [rows 1] if a block is as wide as the matrix. Blocks at the
    borders may be partial: of blocks of (2, 2), a matrix of 3 columns has two in a row, and the third
    column belongs to the second.
    """
    picked = np.asarray(grid[np.arange(rows.start, rows.stop) // block[0]], np.float32)
    if block[1] >= columns:
        return picked
    return np.repeat(picked, block[1], axis=1)[:, :columns]
