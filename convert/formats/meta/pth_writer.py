"""A `.pth` file as torch.save lays it out, filled tensor by tensor."""

import hashlib
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

from jax_llama3.checkpoint.stream import CheckedFile, Tensor, write_tensors

from ..pth import open_pth

_ALIGNMENT = 64  # what torch.save uses
_LARGE = 1 << 30  # from here on a record's sizes are written in 64 bits


def write_pth(path: Path, tensors: list[Tensor], bar: Any) -> dict:
    """Stream tensors into one new file; returns its sha256, md5, size in bytes and tensors.

    torch writes the pickle, which says what the file holds. It could write only tensors that are whole
    in memory, so their bytes are written here. A full disk raises OSError.
    """
    root, texts = _skeleton(path, tensors)
    expected_bytes = sum(map(len, texts.values())) + sum(tensor.nbytes + 512 for tensor in tensors)
    with closing(_HashedFile(path, expected_bytes)) as file:
        archive = zipfile.ZipFile(file, "w")
        records = _Records(archive, root, file)
        try:
            for name, data in texts.items():
                with _open_record(archive, name, len(data), file.size) as record:
                    record.write(data)
            entries = write_tensors(tensors, records.write, bar, records.begin)
            records.close()
            archive.close()
        except BaseException:
            file.abandoned = True  # closing the archive still writes to it
            raise
        finally:
            records.close()
            archive.close()
        written = {**file.finish(), "tensors": entries}
    found, _ = open_pth(path)
    if {name: tensor.shape for name, tensor in found.items()} != {t.name: t.shape for t in tensors}:
        raise OSError(f"{path}: its header was not read back as written")
    return written


class _HashedFile(CheckedFile):
    """A checked file that also gives the md5 sum for Meta's checklist."""

    def __init__(self, path: Path, expected_bytes: int) -> None:
        super().__init__(path, expected_bytes)
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.abandoned = False

    def write(self, data: Any) -> int:
        if self.abandoned:
            return len(data)
        self._md5.update(data)
        return super().write(data)

    def finish(self) -> dict:
        return {**super().finish(), "md5": self._md5.hexdigest()}


class _Records:
    """Each tensor in a record of its own."""

    def __init__(self, archive: zipfile.ZipFile, root: str, file: CheckedFile) -> None:
        self._archive, self._root, self._file = archive, root, file
        self._count = 0
        self._record: Any = None

    def begin(self, tensor: Tensor) -> None:
        self.close()
        name = f"{self._root}/data/{self._count}"
        self._record = _open_record(self._archive, name, tensor.nbytes, self._file.size)
        self._count += 1

    def write(self, data: Any) -> int:
        return self._record.write(data)

    def close(self) -> None:
        if self._record is not None:
            self._record.close()


def _skeleton(path: Path, tensors: list[Tensor]) -> tuple[str, dict[str, bytes]]:
    """The archive's root folder, and the records that torch writes beside those of the tensors."""
    import torch
    from torch.serialization import skip_data

    # The system gives no memory for arrays that are never written.
    state = {t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype.name)) for t in tensors}
    try:
        with skip_data():
            torch.save(state, path)
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].partition("/")[0]
            # Without .format_version torch looks a record's place up instead of computing it.
            kept = ("data.pkl", "byteorder", "version")
            names = [f"{root}/{name}" for name in kept]
            return root, {name: archive.read(name) for name in names if name in archive.namelist()}
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{path} cannot be written; is the disk full? {reason}") from None
    finally:
        path.unlink(missing_ok=True)


def _open_record(archive: zipfile.ZipFile, name: str, size: int, position: int) -> Any:
    """A record whose data begins at a multiple of _ALIGNMENT, so that it can be mapped."""
    info = zipfile.ZipInfo(name)
    info.file_size = size
    large = size >= _LARGE
    begin = position + 30 + len(name.encode()) + 4 + (20 if large else 0)
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return archive.open(info, "w", force_zip64=large)
