"""Tensors in safetensors shards."""

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  safetensors needs it registered to hand out bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from .manifest import MANIFEST
from .stream import CheckedFile, Tensor, pour

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8"}
_ALIGNMENT = 64  # bytes; JAX takes an array that starts at a multiple as it is, without a copy
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


class Place(NamedTuple):
    """Where the bytes of a tensor are."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype


def find_tensors(folder: Path, manifest: dict) -> dict[str, Place]:
    """The place of each tensor that the manifest names, from headers that the library has checked."""
    dtypes = {code: np.dtype(name) for name, code in _CODES.items()}
    places = {}
    for name, shard in open_shards(folder, manifest).items():
        path = folder / name
        with open(path, "rb") as file:
            end = 8 + int.from_bytes(file.read(8), "little")
        # The library refuses a file with gaps between its tensors.
        for tensor in shard.offset_keys():
            view = shard.get_slice(tensor)
            if view.get_dtype() not in dtypes:
                raise ValueError(f"{path}: {tensor} has dtype {view.get_dtype()}, not supported")
            dtype = dtypes[view.get_dtype()]
            places[tensor] = Place(path, end, tuple(view.get_shape()), dtype)
            end += math.prod(view.get_shape()) * dtype.itemsize
    return places


def read_tensor(place: Place) -> np.ndarray:
    """The tensor, in memory that is its own; other threads go on meanwhile."""
    array = aligned_empty(place.shape, place.dtype)
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    with open(place.path, "rb", buffering=0) as file:
        file.seek(place.start)
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise ValueError(f"{place.path} ends too soon; it was changed meanwhile")
            done += count
    return array


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array with no contents yet that JAX can take over without a copy."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)
