"""A single output file and its receipt beside it: both whole or absent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.progress import progress
from .folder import (
    check_name,
    check_space,
    drop_cached_pages,
    empty,
    partial_sibling,
    sibling,
    sync,
    write_synced,
)
from .manifest import MANIFEST, PARTIAL, read_sealed, sealed_manifest
from .writer import OutputFile

_MARGIN = 1 << 20  # bytes of disk for the receipt


def receipt_path(file: Path) -> Path:
    """Where the receipt of a file is: beside it, as FILE.manifest.json."""
    return file.with_name(f"{file.name}.{MANIFEST}")


def read_receipt(file: Path) -> dict:
    """The receipt of a file that has the size it says; any other file raises ValueError."""
    path = receipt_path(file)
    if not path.is_file():
        raise ValueError(f"{file} has no receipt {path.name}: it was not written by this program")
    receipt = read_sealed(path)
    if set(receipt["files"]) != {file.name}:
        raise ValueError(f"{path} is the receipt of {', '.join(receipt['files'])}")
    if (size := file.stat().st_size) != (expected := receipt["files"][file.name]["bytes"]):
        raise ValueError(f"{file} has {size} bytes, not {expected}; write it again")
    return receipt


def check_file_output(file: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError for a file that exists, unless it has our receipt and `overwrite` is true.

    A receipt without its file may be replaced, anything else in its place not.
    """
    check_name(file)
    if file.is_dir():
        raise FileExistsError(f"{file} is a folder; name the file that is to be written")
    path = receipt_path(file)
    if not os.path.lexists(file):
        if os.path.lexists(path) and not _is_receipt(path, file.name):
            raise FileExistsError(f"{path} exists and is no receipt of {file.name}; move it away")
        return
    if not overwrite:
        raise FileExistsError(f"{file} exists already; choose another name or --overwrite")
    # A run that was killed after it renamed the file left the receipt in its partial folder.
    unfinished = sibling(file.absolute(), PARTIAL) / MANIFEST
    size = file.stat().st_size if file.is_file() else None
    if file.is_symlink() or not any(_is_receipt(p, file.name, size) for p in (path, unfinished)):
        raise FileExistsError(
            f"{file} is not as {path.name} says, or has no such receipt, and is not replaced; "
            "move it away"
        )


def write_file(
    file: Path,
    output: OutputFile,
    receipt: dict,
    *,
    overwrite: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write one file, and beside it a receipt with its hash and tensors.

    `check` is called when the file is written; if it raises, nothing stays. An output that exists
    raises FileExistsError, a disk without room OSError.
    """
    file = file.absolute()
    with partial_sibling(file) as folder:
        check_file_output(file, overwrite=overwrite)
        before = _stamp(file)
        empty(folder)
        check_space(folder, output.nbytes + _MARGIN)
        with progress(output.nbytes, "writing") as bar:
            written = output.write(folder / file.name, bar)
        sync(folder / file.name)
        drop_cached_pages(folder / file.name)
        check()
        entry = {key: written[key] for key in ("sha256", "bytes")}
        sealed = sealed_manifest(receipt, {file.name: entry}, written["tensors"])
        write_synced(folder / MANIFEST, sealed)
        sync(folder)
        if _stamp(file) != before:
            raise FileExistsError(f"{file} was changed meanwhile; move it away")
        (folder / file.name).rename(file)
        (folder / MANIFEST).rename(receipt_path(file))
        sync(file.parent)
        shutil.rmtree(folder, ignore_errors=True)


def _is_receipt(path: Path, name: str, size: int | None = None) -> bool:
    """Whether a file is a receipt of ours for a file of that name and, if it is given, that size."""
    try:
        if path.is_symlink():
            return False
        entry = read_sealed(path)["files"][name]
        return size is None or entry["bytes"] == size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _stamp(file: Path) -> tuple[Any, ...] | None:
    if not os.path.lexists(file):
        return None
    state = os.lstat(file)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
