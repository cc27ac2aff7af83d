"""Pure numpy functions from a source's arrangement of a tensor to ours."""

from collections.abc import Callable

import numpy as np

Layout = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The heads split out: (N * H, D) becomes [N H D]. PyTorch's order of elements is ours."""
    return array.reshape(shape)


def half_split(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`reshaped`, and each head's rows from interleaved to half-split RoPE pairs.

    Of a head with six rows, 0 1 2 3 4 5 (pairs 01 23 45) become 0 2 4 1 3 5 (pairs 01 23 45 again,
    now three rows apart).
    """
    n_heads, head_dim, dim = shape
    pairs = array.reshape(n_heads, head_dim // 2, 2, dim)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(shape)
