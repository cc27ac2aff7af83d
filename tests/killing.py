"""Run as a program: kill a conversion at every step that touches the disk, and repeat it each time.

    python tests/killing.py SOURCE FOLDER

Prints a line for each step: its number, its name, and what became of it.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax_llama3.checkpoint.shards
from convert.to_jax import to_jax
from jax_llama3.checkpoint.manifest import read_manifest

# Through these the converter changes what is on the disk.
STEPS = ("mkdir", "open", "pwrite", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "rmdir")


def convert_until(step: int, source: Path, folder: Path) -> str | None:
    """Convert in a child that dies by SIGKILL at the given step; that step, or None if it lived."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def dying(name: str, call: Callable) -> Callable:
            def wrapped(*arguments: object, **options: object) -> object:
                nonlocal count
                if count == step:
                    os.write(writing, name.encode())
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return call(*arguments, **options)

            return wrapped

        for name in STEPS:
            setattr(os, name, dying(name, getattr(os, name)))
        to_jax(source, folder, dtype="bfloat16", overwrite=True)
        os._exit(0)
    os.close(writing)
    name = os.read(reading, 100).decode()
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return name
    assert os.waitstatus_to_exitcode(status) == 0
    return None


def is_accepted(folder: Path) -> bool:
    """Whether a folder passes the gate that `load` and `check` share."""
    try:
        read_manifest(folder)
    except (ValueError, OSError):
        return False
    return True


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(source: Path, place: Path) -> None:
    """Kill at step 0, 1, 2, ... until a conversion lives: of a new output, then of an existing one."""
    jax_llama3.checkpoint.shards._SMALLEST = (
        40_000  # several shards, so that there is something to go on from
    )
    place.mkdir()
    assert convert_until(-1, source, place / "whole") is None
    whole = content(place / "whole")
    for existing in (False, True):
        name: str | None = "begin"
        step = 0
        while name is not None:
            folder = place / f"{existing}-{step}" / "out"
            folder.parent.mkdir()
            acceptable = [whole]
            if existing:
                to_jax(source, folder)
                acceptable.append(content(folder))
            name = convert_until(step, source, folder)
            found = [path for path in folder.parent.iterdir() if is_accepted(path)]
            # Only whole models: the old one, under its name or just moved away, and the new one.
            assert all(content(path) in acceptable for path in found), found
            assert not existing or found
            assert convert_until(-1, source, folder) is None
            assert content(folder) == whole
            assert [path.name for path in folder.parent.iterdir()] == ["out"]
            print(existing, step, name, flush=True)
            step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
