"""The header of a GGUF file, read with every count, length and offset checked.

The gguf library's own reader checks no bounds, and makes several objects of every number of an array.
"""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_ALIGNMENT, _DEFAULT_ALIGNMENT = "general.alignment", 32


class GgufTensor(NamedTuple):
    """A tensor's place in the file, its bytes being those of ggml's type of that name."""

    shape: tuple[int, ...]  # in NumPy's order
    kind: str
    offset: int
    nbytes: int


class GgufHeader(NamedTuple):
    """Fields are numbers, texts, NumPy arrays of numbers, or lists of texts."""

    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Bytes:
    """The file read forward, never past its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError(f"a length of {count} bytes runs past the end of the file")
        return self.file.read(count)

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.number("<Q")).decode()


def read_header(path: Path) -> GgufHeader:
    """Fields and tensors; ValueError unless every count, length and offset lies inside the file.

    Tensors must follow one another without holes, overlaps or trailing bytes.
    """
    with open(path, "rb") as file:
        data = _Bytes(file, os.path.getsize(path))
        try:
            return _read(data)
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(str(error)) from None


def _read(data: _Bytes) -> GgufHeader:
    if data.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    if (version := data.number("<I")) not in (2, 3):
        raise ValueError(f"GGUF version {version} is not supported, only 2 and 3")
    n_tensors, n_fields = data.number("<Q"), data.number("<Q")
    fields: dict[str, Any] = {}
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(n_fields):
        key = data.string()
        if key in fields:
            raise ValueError(f"field {key} stands twice")
        kind = data.number("<I")
        fields[key] = _value(data, kind)
        if key == _ALIGNMENT and kind == _UINT32:
            alignment = int(fields[key])
            if alignment < 8 or alignment & (alignment - 1):
                raise ValueError(f"an alignment of {alignment} bytes is not possible")
    return GgufHeader(fields, _tensors(data, n_tensors, alignment))


def _value(data: _Bytes, kind: int) -> Any:
    if kind == _STRING:
        return data.string()
    if kind != _ARRAY:
        return _numbers(data, kind, 1)[0].item()
    inner, count = data.number("<I"), data.number("<Q")
    if inner == _STRING:
        return [data.string() for _ in range(count)]
    return _numbers(data, inner, count)


def _numbers(data: _Bytes, kind: int, count: int) -> np.ndarray:
    if kind not in _NUMBERS:
        raise ValueError(f"a field of type {kind} is not supported")
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(data.take(dtype.itemsize * count), dtype)


def _tensors(data: _Bytes, n_tensors: int, alignment: int) -> dict[str, GgufTensor]:
    import gguf

    tensors: dict[str, GgufTensor] = {}
    for _ in range(n_tensors):
        name, n_dims = data.string(), data.number("<I")
        if n_dims > 4 or name in tensors:
            raise ValueError(f"tensor {name} stands twice, or has {n_dims} dimensions")
        shape = tuple(data.number("<Q") for _ in range(n_dims))[::-1]
        number, offset = data.number("<I"), data.number("<Q")
        try:
            kind = gguf.GGMLQuantizationType(number)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (KeyError, ValueError):
            raise ValueError(f"tensor {name} has the unknown type {number}") from None
        # Blocks of quantised numbers never cross the end of a row.
        if not shape or shape[-1] % block:
            raise ValueError(f"tensor {name} does not fill its blocks of {block}")
        count = 1
        for size in shape:
            count *= size
        tensors[name] = GgufTensor(shape, kind.name, offset, count // block * block_bytes)
    return _placed(tensors, data, alignment)


def _placed(tensors: dict[str, GgufTensor], data: _Bytes, alignment: int) -> dict[str, GgufTensor]:
    """The tensors with their offsets from the beginning of the file, after a check that they fill it."""
    header_end = data.file.tell()
    start = _padded(header_end, alignment)
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != _padded(end, alignment):
            raise ValueError(
                f"tensor {name} begins at {tensor.offset}, not where the one before it ends"
            )
        end = tensor.offset + tensor.nbytes
    # A header without tensors, as the first of several parts may be, need not be padded.
    least = start + end if tensors else header_end
    if not least <= data.size <= start + _padded(end, alignment):
        raise ValueError(f"{data.size} bytes, but its tensors end at {start + end}")
    return {n: tensor._replace(offset=start + tensor.offset) for n, tensor in tensors.items()}


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
