"""FP8 weights: of fbgemm, with a scale for each row, and block-scaled ones, as DeepSeek's."""

from functools import partial

import numpy as np

from ...source import refuse_all
from .matrix import (
    Found,
    Matrix,
    Tensors,
    check_keys,
    collect,
    expect,
    expect_matrix,
    modules_with,
    unsupported,
)
from .stored import Part
from .words import FLOATS, spread

FP8 = ("float8_e4m3fn",)
_FBGEMM_KEYS = ("quant_method", "activation_scale_ub", "modules_to_not_convert")
_BLOCK_KEYS = (
    "quant_method",
    "activation_scheme",
    "dequantize",
    "fmt",
    "ignored_layers",
    "kv_cache_scheme",
    "modules_to_convert",
    "modules_to_not_convert",
    "scale_fmt",
    "weight_block_size",
)
_ACTIVATIONS = ("input_scale", "activation_scale", "k_scale", "v_scale")


def find_fbgemm(config: dict, tensors: Tensors, part: Part) -> Found:
    """Weights of 8-bit floats with a scale for each row: `weight` and `weight_scale`."""
    check_keys(config, _FBGEMM_KEYS, "quantization_config")

    def make(module: str) -> Matrix:
        rows, columns = expect_matrix(tensors, f"{module}.weight", FP8)
        scale = f"{module}.weight_scale"
        expect(tensors, scale, FLOATS, (rows, 1), (rows,))
        return _matrix(module, scale, (rows, columns), (1, columns))

    matrices, errors = collect(_quantised(tensors), make)
    refuse_all(errors)
    return Found("fbgemm_fp8 (a scale for each row)", matrices, ("input_scale_ub",))


def find_blocks(config: dict, tensors: Tensors, part: Part) -> Found:
    """Weights of 8-bit floats with a scale for each block, or for the whole matrix.

    The scale is what the weight is multiplied by, although its name may be `weight_scale_inv`.
    """
    check_keys(config, _BLOCK_KEYS, "quantization_config")
    if config.get("fmt") not in (None, "e4m3", "float8_e4m3fn"):
        raise unsupported(f"quantization_config: fp8 with fmt {config['fmt']!r}", "'e4m3'")
    block = _block_size(config.get("weight_block_size"))

    def make(module: str) -> Matrix:
        rows, columns = expect_matrix(tensors, f"{module}.weight", FP8)
        names = [f"{module}.weight_scale_inv", f"{module}.weight_scale"]
        scale = next((name for name in names if name in tensors), names[0])
        size = (rows, columns) if block is None else (min(block[0], rows), min(block[1], columns))
        grid = (-(-rows // size[0]), -(-columns // size[1]))
        shapes = [grid, (1,), ()] if grid == (1, 1) else [grid]
        expect(tensors, scale, FLOATS, *shapes)
        return _matrix(module, scale, (rows, columns), size)

    matrices, errors = collect(_quantised(tensors), make)
    refuse_all(errors)
    what = "a scale for each matrix" if block is None else f"blocks of {block[0]} x {block[1]}"
    return Found(f"fp8 ({what})", matrices, _ACTIVATIONS)


def scaled(
    values: np.ndarray, scale: np.ndarray, rows: range, block: tuple[int, int]
) -> np.ndarray:
    """Rows of a matrix times the scales of their blocks, in float32.

    `values` are the rows from `rows.start` on; `scale` is the whole grid. With blocks of (2, 2), the
    row 1 2 3 and the scales 10 100 it is 10 20 300.
    """
    grid = scale.reshape(scale.shape[0] if scale.ndim else 1, -1)
    return values.astype(np.float32) * spread(grid, rows, values.shape[1], block)


def _matrix(module: str, scale: str, shape: tuple[int, int], block: tuple[int, int]) -> Matrix:
    weight = f"{module}.weight"
    return Matrix(weight, shape, "float32", (weight, scale), partial(_rows, weight, scale, block))


def _rows(
    weight: str, scale: str, block: tuple[int, int], part: Part, start: int, stop: int
) -> np.ndarray:
    return scaled(part(weight)[start:stop], part(scale), range(start, stop), block)


def _quantised(tensors: Tensors) -> list[str]:
    """The modules whose weight is of 8-bit floats."""
    return [m for m in modules_with(tensors, "weight") if tensors[f"{m}.weight"].dtype in FP8]


def _block_size(size: object) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    raise ValueError(f"quantization_config: weight_block_size {size!r} is no pair of sizes")
