"""Weights of compressed-tensors: 8-bit floats and integers, and integers packed into 32-bit words."""

from functools import partial
from typing import NamedTuple

import numpy as np

from ...source import refuse_all
from .compressed_config import Scheme, parse_groups
from .fp8 import FP8
from .matrix import Found, Matrix, Tensors, collect, expect, expect_matrix, modules_with
from .stored import Part, as_dtype
from .words import FLOATS, spread, unpack, unpack_span

_ACTIVATIONS = (
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "q_scale",
    "k_scale",
    "v_scale",
    "k_zero_point",
    "v_zero_point",
)


class _Stored(NamedTuple):
    """The names of what a weight is stored as, its shape and its scheme."""

    values: str
    scale: str
    zero: str | None
    groups: str | None
    shape: tuple[int, int]
    scheme: Scheme


def find(config: dict, tensors: Tensors, part: Part) -> Found:
    """Weights that compressed-tensors has compressed, in its four plainest formats."""
    groups = parse_groups(config)
    modules = [
        *modules_with(tensors, "weight_packed"),
        *(m for m in modules_with(tensors, "weight") if _is_quantised(tensors, m)),
    ]

    schemes = groups.of_modules(modules)

    def make(module: str) -> Matrix:
        if module not in schemes:
            raise ValueError(f"{module}.weight is quantised, but no config_groups target it")
        return _matrix(module, schemes[module], tensors, part)

    matrices, errors = collect(modules, make)
    refuse_all(errors)
    named = sorted({str(scheme) for _, scheme in groups.schemes})
    return Found(f"compressed-tensors ({'; '.join(named)})", matrices, _ACTIVATIONS)


def dequantize(
    values: np.ndarray, zero: np.ndarray | None, scale: np.ndarray, dtype: str
) -> np.ndarray:
    """(values - zero) * scale in the dtype of the scales, as compressed-tensors computes it.

    All are float32 and broadcast. The difference is exact in each of the dtypes, so that the product
    alone is rounded. For example (9 - 8) * 0.5 is 0.5.
    """
    if zero is not None:
        values = values - zero
    return (values * scale).astype(as_dtype(dtype), copy=False)


def column_groups(indices: np.ndarray, columns: int, groups: int, name: str) -> np.ndarray | None:
    """The group of each column, if the columns are not in the order of their groups.

    compressed-tensors writes -1 where the order is the plain one.
    """
    if (indices == -1).any():
        return None
    if indices.shape != (columns,) or indices.min() < 0 or indices.max() >= groups:
        raise ValueError(f"{name} names a group that is not among the {groups} of the scales")
    return indices


def _rows(stored: _Stored, part: Part, start: int, stop: int) -> np.ndarray:
    rows, columns = range(start, stop), stored.shape[1]
    scheme, block = stored.scheme, stored.scheme.block_of(*stored.shape)
    scales = part(stored.scale)
    grid = scales.reshape(scales.shape[0] if scales.ndim else 1, -1)
    values, zero = part(stored.values)[start:stop], None
    if scheme.format == "pack-quantized":
        offset = np.float32(1 << (scheme.bits - 1))
        values = unpack(np.array(values), scheme.bits, 1)[:, :columns] - offset
    else:
        values = values.astype(np.float32)
    if stored.groups is not None:
        order = column_groups(part(stored.groups), columns, grid.shape[1], stored.groups)
    else:
        order = None
    if stored.zero is not None:
        zero = _laid_out(_zeros(stored, part, rows), range(stop - start), columns, block, order)
    scale = _laid_out(grid, rows, columns, block, order)
    return dequantize(values, zero, scale, scales.dtype.name)


def _laid_out(
    grid: np.ndarray, rows: range, columns: int, block: tuple[int, int], order: np.ndarray | None
) -> np.ndarray:
    """The grid's number for each number of the rows."""
    if order is None:
        return spread(grid, rows, columns, block)
    return np.asarray(grid[rows.start : rows.stop], np.float32)[:, order]


def _zeros(stored: _Stored, part: Part, rows: range) -> np.ndarray:
    """The zero points of the rows [rows groups], which are packed along the rows if the weight is."""
    assert stored.zero is not None
    zeros, scheme = part(stored.zero), stored.scheme
    if zeros.dtype == np.int32:
        return unpack_span(zeros, scheme.bits, 0, rows) - np.float32(1 << (scheme.bits - 1))
    height = scheme.block_of(*stored.shape)[0]
    grid = zeros.reshape(zeros.shape[0] if zeros.ndim else 1, -1)
    return np.asarray(grid[np.arange(rows.start, rows.stop) // height], np.float32)


def _is_quantised(tensors: Tensors, module: str) -> bool:
    return tensors[f"{module}.weight"].dtype in (*FP8, "int8")


def _matrix(module: str, scheme: Scheme, tensors: Tensors, part: Part) -> Matrix:
    shape, values = _shape(module, scheme, tensors, part)
    height, width = scheme.block_of(*shape)
    grid = (-(-shape[0] // height), -(-shape[1] // width))
    if scheme.strategy == "group" and shape[1] % width:
        raise ValueError(f"{values} has rows of {shape[1]}, which are no groups of {width}")
    shapes = [grid, *([(grid[0],)] if grid[1] == 1 else []), *([()] if grid == (1, 1) else [])]
    scale = f"{module}.weight_scale"
    names, zero, groups = [values, scale], None, None
    dtype = expect(tensors, scale, FLOATS, *shapes).dtype
    if not scheme.symmetric or f"{module}.weight_zero_point" in tensors:
        zero = f"{module}.weight_zero_point"
        packed = (-(-shape[0] * scheme.bits // 32), grid[1])
        if scheme.format == "pack-quantized" and scheme.symmetric:
            raise ValueError(f"{zero} is there, but quantization_config says symmetric")
        if scheme.format == "pack-quantized" and scheme.strategy in ("group", "channel"):
            expect(tensors, zero, ("int32",), packed)
        else:
            expect(tensors, zero, ("int8", *FP8), *shapes)
        names.append(zero)
    if f"{module}.weight_g_idx" in tensors:
        groups = f"{module}.weight_g_idx"
        if scheme.strategy != "group":
            raise ValueError(f"{groups} is there, but the config says no groups")
        expect(tensors, groups, ("int32", "int64"), (shape[1],))
        names.append(groups)
    if scheme.format == "pack-quantized":
        names.append(f"{module}.weight_shape")
    stored = _Stored(values, scale, zero, groups, shape, scheme)
    return Matrix(f"{module}.weight", shape, dtype, tuple(names), partial(_rows, stored))


def _shape(
    module: str, scheme: Scheme, tensors: Tensors, part: Part
) -> tuple[tuple[int, int], str]:
    """The shape of a weight, and the name of what its values are stored under."""
    if scheme.format != "pack-quantized":
        name = f"{module}.weight"
        kinds = FP8 if scheme.kind == "float" else ("int8",)
        return expect_matrix(tensors, name, kinds), name
    expect(tensors, f"{module}.weight_shape", ("int32", "int64"), (2,))
    rows, columns = (int(size) for size in part(f"{module}.weight_shape"))
    if rows < 1 or columns < 1:
        raise ValueError(f"{module}.weight_shape holds {rows} and {columns}; sizes were expected")
    name = f"{module}.weight_packed"
    expect(tensors, name, ("int32",), (rows, -(-columns * scheme.bits // 32)))
    return (rows, columns), name
