"""Tensors in safetensors shards."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  safetensors needs it registered to hand out bfloat16
from safetensors import SafetensorError, safe_open

from .manifest import MANIFEST
from .stream import CheckedFile, Tensor, pour

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8"}
_SMALLEST, _LARGEST, _COUNT = 250_000_000, 5_000_000_000, 64


def partition(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Consecutive tensors in about 64 shards of 250 MB to 5 GB (one larger tensor stands alone).

    A run that was cut short goes on from its last whole shard, so they are not as large as may be.
    """
    limit = sum(tensor.nbytes for tensor in tensors) // _COUNT
    limit = min(max(limit, _SMALLEST), _LARGEST)
    shards: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def write_shard(path: Path, tensors: list[Tensor], bar: Any, metadata: dict | None = None) -> dict:
    """Stream tensors into one new file; its sha256, size and tensors.

    The library writes only what is in memory whole, so the header is written here. The library reads
    it back.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with closing(CheckedFile(path, 8 + len(text) + end)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        entries = pour(tensors, file.write, bar)
        written = {**file.finish(), "tensors": entries}
    with safe_open(path, framework="np") as shard:
        if set(shard.keys()) != set(entries):
            raise OSError(f"{path}: its header was not read back as written")
    return written


def open_shards(folder: Path, manifest: dict) -> dict[str, Any]:
    """A handle for each shard that the manifest names."""
    files = {}
    for name in {entry["file"] for entry in manifest["tensors"].values()}:
        if name not in manifest["files"]:
            raise ValueError(f"{folder / MANIFEST} names a shard it does not list: {name}")
        try:
            files[name] = safe_open(folder / name, framework="np")
        except SafetensorError as error:
            raise ValueError(f"{folder / name}: {error}") from None
    return files
