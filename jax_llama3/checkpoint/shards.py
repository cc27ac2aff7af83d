"""Tensors in safetensors shards."""

import json
import math
import mmap
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  safetensors needs it registered to hand out bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from ..runtime.memory import ALIGNMENT, advise_huge_pages
from .manifest import MANIFEST
from .stream import CheckedFile, Tensor, write_tensors

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "I8"}
_RUN_BYTES = 1 << 26  # one thread reads so many bytes at a time, enough to keep a disk busy
_SMALLEST, _LARGEST, _COUNT = 250_000_000, 5_000_000_000, 64


def partition(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Consecutive tensors in about 64 shards of 250 MB to 5 GB (one larger tensor stands alone).

    Small shards, because a conversion that was cut short continues after its last whole shard.
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
    """Stream tensors into one new safetensors file; returns its sha256, size in bytes and tensors.

    safetensors could write only tensors that are whole in memory, so the header is written here, and
    safetensors reads it back. A full or unsound disk raises OSError.
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
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with closing(CheckedFile(path, 8 + len(text) + end)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        entries = write_tensors(tensors, file.write, bar)
        written = {**file.finish(), "tensors": entries}
    with safe_open(path, framework="np") as shard:
        if set(shard.keys()) != set(entries):
            raise OSError(f"{path}: its header was not read back as written")
    return written


def open_shards(folder: Path, manifest: dict) -> dict[str, Any]:
    """A safetensors handle for each shard in the manifest, by file name; ValueError if one is damaged."""
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
    """Where the bytes of a tensor are: from byte `start` of a file."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def find_tensors(folder: Path, manifest: dict) -> dict[str, Place]:
    """The place of each tensor in the manifest's shards, whose headers safetensors has checked."""
    dtypes = {code: np.dtype(name) for name, code in _CODES.items()}
    places = {}
    for name, shard in open_shards(folder, manifest).items():
        path = folder / name
        with open(path, "rb") as file:
            end = 8 + int.from_bytes(file.read(8), "little")
        # safetensors refuses a file with gaps, so each tensor begins where the one before it ends.
        for tensor in shard.offset_keys():
            view = shard.get_slice(tensor)
            if view.get_dtype() not in dtypes:
                raise ValueError(f"{path}: {tensor} has dtype {view.get_dtype()}, not supported")
            dtype = dtypes[view.get_dtype()]
            places[tensor] = Place(path, end, tuple(view.get_shape()), dtype)
            end += places[tensor].nbytes
    return places


def runs(places: Sequence[Place]) -> list[list[Place]]:
    """The places in their order, in groups of neighbours in a file, of about 64 MB."""
    groups: list[list[Place]] = []
    room, end = 0, None
    for place in places:
        if not room or (place.path, place.start) != end:
            groups.append([])
            room = _RUN_BYTES
        groups[-1].append(place)
        room = max(room - place.nbytes, 0)
        end = (place.path, place.start + place.nbytes)
    return groups


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, read-only, mapped from the system's cache, which all processes share."""
    with open(path, "rb") as file:
        # Private, because some network folders map nothing else.
        options = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
        try:
            pages = mmap.mmap(file.fileno(), 0, **options)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be mapped into memory: {error}") from None
    # Pages that the system reads into its cache now are huge for later processes too.
    advise_huge_pages(pages)
    return np.frombuffer(pages, np.uint8)


def mapped_run(file: np.ndarray, places: list[Place]) -> list[np.ndarray]:
    """Views of neighbours in a file; when it returns, the system has read all of them into memory.

    It is one call of NumPy for all: a thread that has to wait for Python's lock between tensors waits
    long while another one traces a program.
    """
    start, end = places[0].start, places[-1].start + places[-1].nbytes
    if end > file.size:
        raise ValueError(f"{places[0].path} ends too soon; it was changed meanwhile")
    file[start - start % mmap.PAGESIZE : end : mmap.PAGESIZE].max()
    return [
        file[place.start : place.start + place.nbytes].view(place.dtype).reshape(place.shape)
        for place in places
    ]
