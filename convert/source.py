"""A checkpoint of any kind, opened: headers read, weights not."""

import hashlib
import math
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from numpy import dtype, ndarray

from jax_llama3.checkpoint.manifest import hash_file
from jax_llama3.model.config import Config
from jax_llama3.runtime.progress import progress

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a blob is named by its sha1 or its sha256
_POINTER = b"version https://git-lfs"
NOTE = "note: "  # begins those decisions that the user should hear of


class TensorInfo(NamedTuple):
    """A source tensor as its header describes it."""

    shape: tuple[int, ...]
    dtype: str  # as numpy names what `Source.read` returns
    # What it is stored as where the user names no dtype, if that is another.
    kept: str | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * dtype(self.dtype).itemsize


class Record(NamedTuple):
    """A part of a file whose CRC-32 is known."""

    name: str
    offset: int
    size: int
    crc: int


class SourceFile(NamedTuple):
    """A file that is used, what it must be, and the state it was in when it was first looked at."""

    path: Path
    stamp: tuple[int, ...]
    md5: str | None = None
    sha256: str | None = None
    records: tuple[Record, ...] = ()


class Source(NamedTuple):
    """A checkpoint whose headers have been read: `read(name, start, stop)` reads rows of a tensor."""

    kind: str  # a key of table.NAMES
    config: Config
    tensors: dict[str, TensorInfo]
    read: Callable[[str, int, int], ndarray]
    texts: dict[str, bytes]  # tokenizer files in our format
    files: list[SourceFile]
    decisions: list[str]


def refuse_all(errors: list[str]) -> None:
    """Raise ValueError with every error in one line, the first eight in full; none raises nothing."""
    if errors:
        more = f" (and {len(errors) - 8} more)" if len(errors) > 8 else ""
        raise ValueError("; ".join(errors[:8]) + more)


def refuse_unknown(keys: set[str]) -> None:
    """Raise ValueError if there are keys whose meaning is not known, since they could change numbers."""
    if len(keys) == 1:
        raise ValueError(f"unknown key {min(keys)}; delete it if it changes nothing")
    if keys:
        names = ", ".join(sorted(keys))
        raise ValueError(f"unknown keys {names}; delete each if it changes nothing")


def source_file(path: Path, **expected: Any) -> SourceFile:
    """Note a file before anything is read from it; one that is no plain file is refused."""
    check_plain(path)
    return SourceFile(path, _stamp(path), **expected)


def check_plain(path: Path) -> None:
    """Refuse what is no file, or what only stands for one.

    That is a link that leaves its folder for anything but the hub's cache, and a pointer of git-lfs.
    """
    if path.is_symlink():
        target, folder = path.resolve(), path.parent.resolve()
        if folder not in target.parents and not _is_blob(target, folder):
            raise ValueError(
                f"{path} is a link that leaves its folder; copy it, or name the real folder"
            )
    if not path.is_file():
        if os.path.lexists(path):
            raise ValueError(f"{path} is no plain file, or a link to nothing")
        raise FileNotFoundError(f"{path} is missing")
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path}: a git-lfs pointer, not the file (run: git lfs pull)")


def _is_blob(target: Path, folder: Path) -> bool:
    """Whether a file is where the hub's cache keeps those of a repository.

    From a snapshot of that cache links lead to the repository's blobs; in folders that older versions
    of the hub's library filled, to the blob's hash in the cache, wherever that is.
    """
    snapshots = [parent for parent in folder.parents if parent.name == "snapshots"]
    if target.parent in [parent.parent / "blobs" for parent in snapshots]:
        return True
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return in_cache and _HASH.fullmatch(target.name) is not None


class Hashing:
    """sha256 and size of files, for the manifest, in threads; each file is read once.

    A file may be added as soon as it is known: so it is hashed while headers are read and torch is
    imported. Leaving the context early stops the threads.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        self._entries: dict[Path, Future] = {}
        self._stopped = False
        self._bar = progress(0, "hashing the source")

    def __enter__(self) -> "Hashing":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._pool.shutdown(cancel_futures=True)
        self._bar.close()

    def add(self, file: SourceFile) -> None:
        """Begin to hash a file, if that has not been done."""
        if file.path not in self._entries:
            self._bar.total += file.path.stat().st_size
            self._entries[file.path] = self._pool.submit(self._hash, file)

    def result(self, files: list[SourceFile]) -> dict[str, dict]:
        """The entries of these files; what is not as expected raises ValueError."""
        for file in files:
            self.add(file)
        hashes = {file.path.name: self._entries[file.path].result() for file in files}
        _check_distinct(files, hashes)
        return hashes

    def _hash(self, file: SourceFile) -> dict:
        md5 = hashlib.md5(usedforsecurity=False)
        also = [_RecordChecksums(file)] if file.records else []
        sha256 = hash_file(file.path, self, [*also, *([md5] if file.md5 else [])])
        if file.md5 is not None and md5.hexdigest() != file.md5.lower():
            raise ValueError(f"{file.path} is damaged: its md5 is not the one in checklist.chk")
        if file.sha256 is not None and sha256 != file.sha256:
            raise ValueError(f"{file.path} is damaged: its sha256 is not the manifest's")
        return {"sha256": sha256, "bytes": file.path.stat().st_size}

    def update(self, count: int) -> None:
        """What `hash_file` calls after each block: moves the bar, or ends the thread by an error."""
        if self._stopped:
            raise InterruptedError("the hash is not needed any more")
        self._bar.update(count)


def hash_files(files: list[SourceFile]) -> dict[str, dict]:
    """sha256 and size of every file; what is not as expected raises ValueError."""
    with Hashing() as hashing:
        return hashing.result(files)


def _check_distinct(files: list[SourceFile], hashes: dict[str, dict]) -> None:
    """Refuse a file of weights that is there twice under two names."""
    seen: dict[str, Path] = {}
    for file in files:
        if file.path.suffix in (".pth", ".bin", ".safetensors"):
            first = seen.setdefault(hashes[file.path.name]["sha256"], file.path)
            if first != file.path:
                raise ValueError(f"{file.path} is a copy of {first.name}; a shard is missing")


def check_unchanged(files: Iterable[SourceFile]) -> None:
    """Refuse a source that was written to since it was opened."""
    for file in files:
        if not file.path.is_file() or _stamp(file.path) != file.stamp:
            raise ValueError(f"{file.path} changed while it was converted; convert it again")


def _stamp(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


class _RecordChecksums:
    """A digest that, fed with a file's bytes in order, compares the CRC-32 of each record."""

    def __init__(self, file: SourceFile) -> None:
        self._path, self._position, self._crc = file.path, 0, 0
        self._left = deque(sorted(file.records, key=lambda record: record.offset))

    def update(self, block: bytes) -> None:
        view, begin = memoryview(block), self._position
        self._position += len(block)
        while self._left:
            record = self._left[0]
            end = record.offset + record.size
            piece = view[max(record.offset - begin, 0) : max(end - begin, 0)]
            self._crc = zlib.crc32(piece, self._crc)
            if end > self._position:
                return
            if self._crc != record.crc:
                raise ValueError(
                    f"{self._path}: {record.name} is damaged: its CRC-32 differs; "
                    "bring it again, or save it again with torch.save"
                )
            self._left.popleft()
            self._crc = 0
