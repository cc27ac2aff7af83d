"""Weights of bitsandbytes: 4-bit codes with a scale for each block, and 8-bit integers."""

import json
import math
from functools import partial
from typing import Any, NamedTuple

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
from .stored import Part, as_dtype
from .words import FLOATS

_KEYS = (
    "quant_method",
    "_load_in_4bit",
    "_load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules",
    "llm_int8_threshold",
    "load_in_4bit",
    "load_in_8bit",
)
_STATE = "weight.quant_state.bitsandbytes__"
_STATE_KEYS = ("quant_type", "blocksize", "dtype", "shape")
_NESTED_KEYS = ("nested_blocksize", "nested_dtype", "nested_offset")
_MOST_STATE_BYTES = 1 << 16
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_POSITIVE_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
# What the codes 0 to 15 stand for, which the library does not read from the file either.
CODES = {
    "nf4": np.array(
        [
            -1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
            0.07958029955625534,
            0.16093020141124725,
            0.24611230194568634,
            0.33791524171829224,
            0.44070982933044434,
            0.5626170039176941,
            0.7229568362236023,
            1.0,
        ],
        np.float32,
    ),
    "fp4": np.concatenate([_POSITIVE_FP4, -_POSITIVE_FP4]),
}
_INT8_STEP = np.float32(7.874015718698502e-3)  # 1 / 127, as the library has it


class _Nested(NamedTuple):
    """How the blocks' scales are themselves quantised."""

    block_size: int
    offset: np.float32


class _State(NamedTuple):
    """What the file says of a 4-bit weight."""

    codes: np.ndarray
    block_size: int
    dtype: str
    shape: tuple[int, int]
    nested: _Nested | None


def find(config: dict, tensors: Tensors, part: Part) -> Found:
    """Weights that transformers saved with bitsandbytes, in 4 or in 8 bits."""
    check_keys(config, _KEYS, "quantization_config")
    states = [name for name in tensors if f".{_STATE}" in name]
    eight, errors = collect(modules_with(tensors, "SCB"), partial(_int8, tensors, part))
    four, more = collect(sorted(states), partial(_four_bits, tensors, part))
    refuse_all([*errors, *more])
    kinds = sorted({name.rpartition("__")[2] for name in states})
    if any(f"{matrix.name}.nested_absmax" in matrix.parts for matrix in four):
        kinds.append("double quantisation")
    kinds += ["int8"] if eight else []
    return Found(f"bitsandbytes ({', '.join(kinds)})", [*four, *eight])


def dequantize_4bit(
    packed: np.ndarray, codes: np.ndarray, scales: np.ndarray, span: range, block_size: int
) -> np.ndarray:
    """The elements of a span: each code's value times its block's scale, in float32.

    `packed` are the bytes from `span.start // 2` on; the first of a byte's two elements is in its high
    bits. `scales` are those of the blocks from `span.start // block_size` on. For example 0xf0 of nf4
    and the scale 3: 3 -3.
    """
    numbers = np.empty(2 * packed.size, np.uint8)
    numbers[0::2], numbers[1::2] = packed >> 4, packed & 15
    first = span.start % 2
    values = codes[numbers[first : first + len(span)]]
    blocks = np.arange(span.start, span.stop) // block_size - span.start // block_size
    return values * scales[blocks]


def dequantize_scales(
    stored: np.ndarray, codes: np.ndarray, scales: np.ndarray, offset: np.float32
) -> np.ndarray:
    """Scales that are 8-bit codes: each code's value times its own block's scale, and the offset.

    For example the code of 0.5, the scale 4 and the offset 10: 12.
    """
    return codes[stored] * scales + offset


def dequantize_int8(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Rows of 8-bit integers, of which 127 stands for a row's largest number, in float32."""
    return values.astype(np.float32) * largest.astype(np.float32)[:, None] * _INT8_STEP


def _four_bit_rows(weight: str, state: _State, part: Part, start: int, stop: int) -> np.ndarray:
    span = range(start * state.shape[1], stop * state.shape[1])
    stored = part(weight).reshape(-1)
    width = stored.dtype.itemsize
    first, last = span.start // 2, -(-span.stop // 2)
    words = np.array(stored[first // width : -(-last // width)]).view(np.uint8)
    packed = words[first % width :][: last - first]
    blocks = slice(span.start // state.block_size, -(-span.stop // state.block_size))
    scales = _scales(weight, state, part, blocks)
    values = dequantize_4bit(packed, state.codes, scales, span, state.block_size)
    return values.astype(as_dtype(state.dtype), copy=False).reshape(stop - start, -1)


def _scales(weight: str, state: _State, part: Part, blocks: slice) -> np.ndarray:
    stored = np.array(part(f"{weight}.absmax")[blocks])
    if state.nested is None:
        return stored.astype(np.float32, copy=False)
    of_block = np.arange(blocks.start, blocks.stop) // state.nested.block_size
    scales = part(f"{weight}.nested_absmax")[of_block]
    codes = part(f"{weight}.nested_quant_map")
    return dequantize_scales(stored, codes, scales, state.nested.offset)


def _four_bits(tensors: Tensors, part: Part, name: str) -> Matrix:
    weight, _, kind = name.partition(".quant_state.bitsandbytes__")
    if kind not in CODES:
        raise unsupported(f"{name}: bitsandbytes in {kind!r}", " and ".join(CODES))
    if math.prod(expect(tensors, name, ("uint8",)).shape) > _MOST_STATE_BYTES:
        raise ValueError(f"{name} has {tensors[name].nbytes} bytes; a short text was expected")
    state = _parse_state(name, kind, np.array(part(name)).tobytes())
    size = math.prod(state.shape)
    blocks = -(-size // state.block_size)
    stored = expect(tensors, weight, (*FLOATS, "uint8", "int8"))
    if stored.shape[1:] != (1,) or stored.nbytes != -(-size // 2):
        raise ValueError(
            f"{weight} has shape {list(stored.shape)}, which does not hold {size} numbers of 4 bits"
        )
    expect(tensors, f"{weight}.quant_map", ("float32",), (16,))
    if not np.allclose(part(f"{weight}.quant_map"), CODES[kind], rtol=0, atol=1e-6):
        raise ValueError(
            f"{weight}.quant_map is not that of {kind}; save it with bitsandbytes again"
        )
    names = [weight, name, f"{weight}.quant_map", f"{weight}.absmax"]
    if state.nested is None:
        expect(tensors, names[3], ("float32",), (blocks,))
    else:
        names += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"]
        expect(tensors, names[3], ("uint8",), (blocks,))
        expect(tensors, names[4], ("float32",), (-(-blocks // state.nested.block_size),))
        expect(tensors, names[5], ("float32",), (256,))
    rows = partial(_four_bit_rows, weight, state)
    return Matrix(weight, state.shape, state.dtype, tuple(names), rows)


def _parse_state(name: str, kind: str, data: bytes) -> _State:
    """The text that bitsandbytes stores beside a weight."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no JSON object; the file is damaged")
    check_keys(values, (*_STATE_KEYS, *_NESTED_KEYS), name)
    shape, size, dtype = (values.get(key) for key in ("shape", "blocksize", "dtype"))
    sides = shape if isinstance(shape, list) else []
    if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise ValueError(f"{name}: shape {shape!r} is not that of a matrix")
    if (
        values.get("quant_type") != kind
        or type(size) is not int
        or size not in _BLOCK_SIZES
        or dtype not in FLOATS
    ):
        raise ValueError(
            f"{name}: quant_type {values.get('quant_type')!r} with blocksize {size!r} and dtype "
            f"{dtype!r} is nothing that bitsandbytes writes"
        )
    state = _State(CODES[kind], size, dtype, (sides[0], sides[1]), None)
    if not any(key in values for key in _NESTED_KEYS):
        return state
    return state._replace(nested=_parse_nested(name, values))


def _parse_nested(name: str, values: dict[str, Any]) -> _Nested:
    size, dtype, offset = (values.get(key) for key in _NESTED_KEYS)
    if (
        type(size) is not int
        or not 0 < size <= max(_BLOCK_SIZES)
        or dtype != "float32"
        or not isinstance(offset, float)
    ):
        raise ValueError(
            f"{name}: nested_blocksize {size!r}, nested_dtype {dtype!r} and nested_offset "
            f"{offset!r} are nothing that bitsandbytes writes"
        )
    return _Nested(size, np.float32(offset))


def _int8(tensors: Tensors, part: Part, module: str) -> Matrix:
    weight, scale = f"{module}.weight", f"{module}.SCB"
    shape = expect_matrix(tensors, weight, ("int8",))
    expect(tensors, scale, ("float32",), (shape[0],))
    names = [weight, scale]
    if (layout := f"{module}.weight_format") in tensors:
        expect(tensors, layout, ("uint8",), (), (1,))
        if part(layout).any():
            raise unsupported(f"{layout}: the layout {int(part(layout).max())}", "0 (rows)")
        names.append(layout)

    def rows(part: Part, start: int, stop: int) -> np.ndarray:
        return dequantize_int8(part(weight)[start:stop], part(scale)[start:stop])

    return Matrix(weight, shape, "float32", tuple(names), rows)
