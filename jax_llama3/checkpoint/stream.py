"""Tensors on their way to a file: hashed, written and read back in threads, while more are made."""

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BLOCK_BYTES = 4 << 20
READ_BACK_BYTES = 16 << 20  # so many written bytes are read back from the disk together
AHEAD = 2  # how many finished blocks may wait for the threads


class Tensor(NamedTuple):
    """A tensor that is to be written; `blocks()` yields its elements in order, as arrays of any shape."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class CheckedFile:
    """A new file whose bytes are read back from the disk, compared with what was written, and hashed.

    `expected_bytes` is about how large it will be. A path that exists, a full disk and bytes that are
    not read back as written raise OSError.
    """

    def __init__(self, path: Path, expected_bytes: int) -> None:
        self.path, self.size, self._digest = path, 0, hashlib.sha256()
        self._unread: list[memoryview] = []
        self._checking = ThreadPoolExecutor(1)
        self._checked: Future | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk shows at once
                os.posix_fallocate(self._descriptor, 0, expected_bytes)
        except BaseException:
            self.close()
            raise

    def write(self, data: Any) -> int:
        """Append the bytes of a buffer, which must not change until `finish`; how many they are."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], self.size + done)
        self.size += done
        self._unread.append(view)
        if sum(map(len, self._unread)) >= READ_BACK_BYTES:
            self._wait_for_check()
            self._checked = self._checking.submit(self._read_back, self._unread, self.size)
            self._unread = []
        return done

    def flush(self) -> None:
        """Do nothing: `zipfile` calls it, and `write` keeps no bytes back."""

    def finish(self) -> dict:
        """Cut the file to what was written; its sha256 and size, as the manifest holds them."""
        self._wait_for_check()
        self._read_back(self._unread, self.size)
        os.ftruncate(self._descriptor, self.size)
        return {"sha256": self._digest.hexdigest(), "bytes": self.size}

    def close(self) -> None:
        """Close the file, whether it is finished or not."""
        self._checking.shutdown()
        os.close(self._descriptor)

    def _wait_for_check(self) -> None:
        if self._checked is not None:
            self._checked.result()

    def _read_back(self, views: list[memoryview], end: int) -> None:
        """Compare the bytes on the disk that end at `end` with the views, and hash them."""
        length = sum(map(len, views))
        position = end - length
        getattr(os, "fdatasync", os.fsync)(self._descriptor)
        self._drop_cached_pages(position, length)
        for view in views:
            read = os.pread(self._descriptor, len(view), position)
            if read != bytes(view):
                raise OSError(f"{self.path}: not read back as written; is the disk sound?")
            self._digest.update(read)
            position += len(view)
        self._drop_cached_pages(end - length, length)

    def _drop_cached_pages(self, position: int, length: int) -> None:
        """Drop a stretch from the system's cache, so that it is read from the disk and frees memory."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, position, length, os.POSIX_FADV_DONTNEED)


def write_tensors(
    tensors: Iterable[Tensor],
    write: Callable[[Any], int],
    bar: Any,
    begin: Callable[[Tensor], None] = lambda tensor: None,
) -> dict[str, dict]:
    """Call `begin` with each tensor, then `write` with each of its blocks, in a thread of their own.

    Returns shape, dtype and sha256 of each tensor by name; `bar` counts bytes. Blocks that are not as
    many bytes as the tensor raise ValueError.
    """
    digests = []
    pending: deque[list[Future]] = deque()

    def wait_until(limit: int) -> None:
        while len(pending) > limit:
            for future in pending.popleft():
                future.result()

    with ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as writing:
        for tensor in tensors:
            digest, size = hashlib.sha256(), 0
            digests.append((tensor, digest))
            pending.append([writing.submit(begin, tensor)])
            for block in tensor.blocks():
                data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
                size += data.nbytes
                pending.append([hashing.submit(digest.update, data), writing.submit(write, data)])
                wait_until(AHEAD)
                bar.update(data.nbytes)
            if size != tensor.nbytes:
                raise ValueError(f"{tensor.name} came as {size} bytes, not {tensor.nbytes}")
        wait_until(0)
    return {
        tensor.name: {
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "sha256": digest.hexdigest(),
        }
        for tensor, digest in digests
    }


def array_tensor(name: str, array: Any) -> Tensor:
    """A tensor that is in memory already, on any device."""

    def blocks() -> Iterator[np.ndarray]:
        flat = np.ascontiguousarray(array).reshape(-1)
        step = BLOCK_BYTES // flat.dtype.itemsize
        for start in range(0, flat.size, step):
            yield flat[start : start + step]

    return Tensor(name, tuple(array.shape), np.dtype(array.dtype), blocks)
