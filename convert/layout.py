"""Pure numpy functions from a source's order of rows to ours, and back.

A matrix comes as rows (heads * head_dim, D), whole heads at a time. That the heads are split out into
[N H D] is a reshape and moves nothing; only RoPE's two orders differ.
"""

from collections.abc import Callable

import numpy as np

Layout = Callable[[np.ndarray, int], np.ndarray]  # of rows and head_dim


def unchanged(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """PyTorch's order of elements is ours."""
    return rows


def half_split(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Each head's rows from interleaved to half-split RoPE pairs.

    Of a head with six rows, 0 1 2 3 4 5 (pairs 01 23 45) become 0 2 4 1 3 5 (pairs 01 23 45 again,
    now three rows apart).
    """
    return _swapped(rows, (-1, head_dim // 2, 2, rows.shape[-1]))


def interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """The inverse of `half_split`: 0 2 4 1 3 5 become 0 1 2 3 4 5."""
    return _swapped(rows, (-1, 2, head_dim // 2, rows.shape[-1]))


def _swapped(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The rows with the two middle axes of `shape` exchanged."""
    return np.ascontiguousarray(rows.reshape(shape).swapaxes(1, 2)).reshape(rows.shape)
