"""Tensors of safetensors files in every dtype that quantised weights are stored in, mapped into memory."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jax_llama3.checkpoint.manifest import parse_json

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What quantised weights and what belongs to them may be stored in besides.
STORED = {
    **PLAIN,
    "F8_E4M3": "float8_e4m3fn",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "I64": "int64",
}
_NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}

Part = Callable[[str], np.ndarray]  # a stored tensor by name; its bytes are read when it is indexed


def as_dtype(name: str) -> np.dtype:
    """The dtype of a name, of numpy's own or of those that ml_dtypes adds."""
    return np.dtype(_NUMPY.get(name, name))


class Mapping:
    """Tensors of files that were found sound, as arrays over the files' own bytes.

    Mapped bytes count as memory of the process once they are read. So what belongs to one weight is
    mapped together, and let go by `release` before the next.
    """

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths
        self._headers: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def part(self, name: str) -> np.ndarray:
        """The tensor of that name, which is a key of `paths`."""
        if name not in self._arrays:
            self._arrays[name] = self._map(self._paths[name], name)
        return self._arrays[name]

    def release(self) -> None:
        """Let go of what is mapped."""
        self._arrays.clear()

    def _map(self, path: Path, name: str) -> np.ndarray:
        begin, entries = self._header(path)
        entry = entries[name]
        shape, dtype = tuple(entry["shape"]), as_dtype(STORED[entry["dtype"]])
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        offset = begin + entry["data_offsets"][0]
        return np.asarray(np.memmap(path, dtype, "r", offset, shape))

    def _header(self, path: Path) -> tuple[int, dict[str, Any]]:
        """Where the data begin, and the entries of the header, which the library has examined."""
        if path not in self._headers:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self._headers[path] = 8 + length, parse_json(file.read(length), path)
        return self._headers[path]
