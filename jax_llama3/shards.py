"""Tensors in safetensors shards."""

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  safetensors needs it registered to hand out bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .folder import sync
from .manifest import MANIFEST

_SHARD_BYTES = 1_000_000_000


def partition(sizes: list[tuple[str, int]]) -> list[list[str]]:
    """Consecutive tensors grouped into shards of at most _SHARD_BYTES (one larger tensor is alone)."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes:
        if size > room:
            shards.append([])
            room = _SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def write_shard(path: Path, shard: dict[str, np.ndarray]) -> None:
    """Write one shard, read it back, compare, and sync it."""
    path.touch()
    mode = path.stat().st_mode  # what the umask gives; the library writes 0600
    save_file(shard, path)
    path.chmod(mode)
    with safe_open(path, framework="np") as written:
        for name, array in shard.items():
            if written.get_tensor(name).tobytes() != array.tobytes():
                raise OSError(f"{path}: {name} was not read back as written; is the disk sound?")
    sync(path)


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
