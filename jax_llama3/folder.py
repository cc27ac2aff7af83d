"""Output folders that are whole or absent: written beside their place, synced, then renamed."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .manifest import FORMAT, MANIFEST, read_json


@contextmanager
def new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A sibling folder that becomes `folder` when the block ends well, and is removed otherwise."""
    folder = folder.absolute()
    _sweep(folder)
    check_output(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial_folder = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial_folder.mkdir()
    try:
        yield partial_folder
        sync(partial_folder)
        check_output(folder, overwrite=overwrite)
        _replace(partial_folder, folder)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is ours and may be replaced."""
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists already; choose another name or --overwrite")
    if folder.is_symlink() or not _is_ours(folder):
        raise FileExistsError(
            f"{folder} is not a converted model and nothing else, and is not replaced; move it away"
        )


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a manifest of this format and no file that it does not list."""
    try:
        manifest = read_json(folder / MANIFEST)
        listed = {MANIFEST, *manifest["files"]}
        return manifest["format"] == FORMAT and {p.name for p in folder.iterdir()} <= listed
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is put back if that fails."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


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
    """Clear away what dead runs on the same output left; one that died between renames is undone."""
    name = glob.escape(folder.name)
    for path in [*folder.parent.glob(f".{name}.old-*"), *folder.parent.glob(f".{name}.partial-*")]:
        pid = path.name.rpartition("-")[2]
        if not pid.isdigit() or (int(pid) != os.getpid() and _alive(int(pid))):
            continue
        if ".old-" in path.name and not os.path.lexists(folder):
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
