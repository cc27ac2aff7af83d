"""Output folders that are whole or absent: written beside their place, synced, then renamed."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .manifest import MANIFEST


@contextmanager
def new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A sibling folder that becomes `folder` when the block ends well, and is removed otherwise."""
    folder = folder.absolute()
    check_output(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    partial_folder = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial_folder.mkdir()
    try:
        yield partial_folder
        sync(partial_folder)
        check_output(folder, overwrite=overwrite)
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        partial_folder.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is ours and may be replaced."""
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists already; choose another name or --overwrite")
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        raise FileExistsError(
            f"{folder} is not a converted model and is not replaced; move it away"
        )


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    path.write_bytes(data)
    sync(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what dead runs on the same output left."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
