"""Rows of tensors in safetensors files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 for safetensors
import numpy as np
from safetensors import SafetensorError, safe_open

from jax_llama3.checkpoint.manifest import parse_json


def open_safetensors(path: Path) -> Any:
    """A handle on a file whose header is sound; any other raises ValueError."""
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a sound safetensors file{hint(path)}: {error}") from None


def check_header(path: Path) -> None:
    """Refuse a header that names a tensor twice; the library would take the last of the two."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        parse_json(file.read(length), path)


def row_reader(places: dict[str, Path]) -> Callable[[str, int, int], np.ndarray]:
    """A function that reads rows of a tensor, given the file that holds each.

    Files are mapped into memory, and what is read stays there until the file is closed: each is
    opened anew for every tensor, so that never more than one tensor stays.
    """
    current: dict[str, Any] = {}

    def read(name: str, start: int, stop: int) -> np.ndarray:
        if name not in current:
            current.clear()
            current[name] = open_safetensors(places[name]).get_slice(name)
        return current[name][start:stop]

    return read


def hint(path: Path) -> str:
    """Words for an error message about what a damaged file looks like; "" if nothing is recognised."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return " but a git-lfs pointer (run: git lfs pull)"
    if head.lstrip()[:1] == b"<":
        return " but a web page"
    if head.startswith(b"\x1f\x8b"):
        return " but gzip-compressed"
    return ""
