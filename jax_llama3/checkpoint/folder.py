"""Output folders that are whole or absent: written beside their place, synced, then renamed."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .manifest import MANIFEST, PARTIAL, is_format, read_json

OLD = ".jax_llama3-old"
_SCRATCH = ".jax_llama3-scratch"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(folder: Path, *, overwrite: bool, resumable: bool = False) -> Iterator[Path]:
    """A sibling folder that becomes `folder` when the block ends well, and is removed if it fails.

    With `resumable` it keeps what a killed or interrupted run left in it. Another run that writes the
    same folder, and an output that may not be replaced, raise FileExistsError; a full disk OSError.
    """
    folder = folder.absolute()
    with partial_sibling(folder, resumable=resumable) as partial_folder:
        _undo(folder)
        check_output(folder, overwrite=overwrite)
        if not resumable:
            empty(partial_folder)
        yield partial_folder
        sync(partial_folder)
        check_output(folder, overwrite=overwrite)
        _replace(partial_folder, folder)


@contextmanager
def partial_sibling(output: Path, *, resumable: bool = False) -> Iterator[Path]:
    """A locked folder beside an output, with what a killed run left in it; removed if the block fails.

    With `resumable` it outlives a KeyboardInterrupt. The output's parents are made, and those that
    are empty are removed again if the block fails.
    """
    parents = _make_parents(output.parent)
    try:
        partial_folder = sibling(output, PARTIAL)
        descriptor = _lock(partial_folder, output)
        try:
            yield partial_folder
        except BaseException as error:
            if not (resumable and isinstance(error, KeyboardInterrupt)):
                shutil.rmtree(partial_folder, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)
    except BaseException as error:
        for parent in parents:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in _FULL:
            raise OSError(
                f"{output} cannot be written: {error.strerror}; make room or choose another place"
            ) from None
        raise


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A sibling of `folder` for temporary files, empty at first and removed after the block."""
    folder = folder.absolute()
    path = sibling(folder, _SCRATCH)
    descriptor = _lock(path, folder)
    try:
        empty(path)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError for an output that exists, unless it is a model and `overwrite` is true.

    Names that unfinished folders have raise ValueError.
    """
    check_name(folder)
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists already; choose another name or --overwrite")
    if folder.is_symlink() or not _is_ours(folder):
        raise FileExistsError(
            f"{folder} is not a converted model and nothing else, and is not replaced; move it away"
        )


def check_name(output: Path) -> None:
    """Raise ValueError for a name that an unfinished output has."""
    if output.absolute().name.endswith((PARTIAL, OLD, _SCRATCH)):
        raise ValueError(f"{output}: such names are for what is being written; choose another")


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder.parent}: {needed / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are free; "
            "make room or choose another place"
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


def drop_cached_pages(path: Path) -> None:
    """Drop a file that the disk has from the system's cache.

    Its pages in memory are larger when it is read than when it was written, and decoding from larger
    pages is faster.
    """
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def sibling(folder: Path, suffix: str) -> Path:
    """A hidden name beside the folder's; it holds the hash of a name that is too long."""
    name = os.fsencode(folder.name)
    stem = folder.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()
    return folder.with_name(f".{stem}{suffix}")


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns those that were missing, the deepest first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing


def _lock(partial_folder: Path, folder: Path) -> int:
    """Make or take over the partial folder, and lock it until the descriptor is closed.

    The system releases the lock when the process dies, however it dies. The folder itself is locked:
    a lock file, such as the package filelock leaves, would stay beside the output.
    """
    import fcntl  # Windows has none: there the library is imported, but writes no folder

    while True:
        partial_folder.mkdir(exist_ok=True)
        descriptor = os.open(partial_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two calls another run may have finished and renamed the folder.
            if os.path.samestat(os.fstat(descriptor), os.stat(partial_folder)):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise FileExistsError(
                f"another run is writing {folder}; wait for it or choose another place"
            ) from None
        os.close(descriptor)


def empty(folder: Path) -> None:
    """Delete whatever is in a folder."""
    for path in folder.iterdir():
        remove(path)


def remove(path: Path) -> None:
    """Delete whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a manifest of this format and no file that it does not list."""
    try:
        manifest = read_json(folder / MANIFEST)
        listed = {MANIFEST, *manifest["files"]}
        return is_format(manifest) and {path.name for path in folder.iterdir()} <= listed
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _old(folder: Path) -> Path:
    return sibling(folder, OLD)


def _undo(folder: Path) -> None:
    """Put the old folder back if a run died between its two renames; delete one that was replaced."""
    if not os.path.lexists(_old(folder)):
        return
    if os.path.lexists(folder) or not _is_ours(_old(folder)):
        remove(_old(folder))
    else:
        _old(folder).rename(folder)


def _replace(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is put back if that fails."""
    old = _old(folder)
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
