"""A walk over a GGUF header that believes nothing: the gguf library's reader checks no bounds."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


class _Header:
    """The file read forward, never past its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError(f"a length of {count} bytes runs past the end of the file")
        return self.file.read(count)

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> bytes:
        return self.take(self.number("<Q"))


def check_gguf(path: Path) -> None:
    """Raise ValueError unless every count, length, offset and size lies inside the file.

    Tensors must follow one another without holes, overlaps or trailing bytes.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = _Header(file, size)
        try:
            _check(header)
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(str(error)) from None


def _check(header: _Header) -> None:
    if header.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    if (version := header.number("<I")) not in (2, 3):
        raise ValueError(f"GGUF version {version} is not supported, only 2 and 3")
    n_tensors, n_fields = header.number("<Q"), header.number("<Q")
    alignment = _DEFAULT_ALIGNMENT
    seen: set[bytes] = set()
    for _ in range(n_fields):
        key = header.string()
        if key in seen:
            raise ValueError(f"field {key.decode()} stands twice")
        seen.add(key)
        kind = header.number("<I")
        if key == b"general.alignment" and kind == 4:
            alignment = header.number("<I")
            if alignment < 8 or alignment & (alignment - 1):
                raise ValueError(f"an alignment of {alignment} bytes is not possible")
        else:
            _skip_value(header, kind)
    _check_tensors(header, n_tensors, alignment)


def _skip_value(header: _Header, kind: int) -> None:
    if kind == _STRING:
        header.string()
    elif kind == _ARRAY:
        inner, count = header.number("<I"), header.number("<Q")
        if inner == _STRING:
            for _ in range(count):
                header.string()
        else:
            header.take(_scalar_bytes(inner) * count)
    else:
        header.take(_scalar_bytes(kind))


def _scalar_bytes(kind: int) -> int:
    if kind not in _SCALAR_BYTES:
        raise ValueError(f"a field of type {kind} is not supported")
    return _SCALAR_BYTES[kind]


def _check_tensors(header: _Header, n_tensors: int, alignment: int) -> None:
    import gguf

    places = []
    names: set[bytes] = set()
    for _ in range(n_tensors):
        name, n_dims = header.string(), header.number("<I")
        if n_dims > 4 or name in names:
            raise ValueError(f"tensor {name.decode()} stands twice, or has {n_dims} dimensions")
        names.add(name)
        count = 1
        for _ in range(n_dims):
            count *= header.number("<Q")
        kind, offset = header.number("<I"), header.number("<Q")
        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (KeyError, ValueError):
            raise ValueError(f"tensor {name.decode()} has the unknown type {kind}") from None
        if count % block:
            raise ValueError(f"tensor {name.decode()} does not fill its blocks of {block}")
        places.append((offset, count // block * block_bytes, name.decode()))
    start = _padded(header.file.tell(), alignment)
    end = 0
    for offset, length, name in sorted(places):
        if offset != _padded(end, alignment):
            raise ValueError(f"tensor {name} begins at {offset}, not where the one before it ends")
        end = offset + length
    if not start + end <= header.size <= start + _padded(end, alignment):
        raise ValueError(f"{header.size} bytes, but its tensors end at {start + end}")


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
