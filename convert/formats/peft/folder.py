"""An adapter folder of PEFT's: its settings, and the parts of its weights by module."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...source import SourceFile, TensorInfo, check_plain, refuse_all, source_file
from ..pth import read_records, read_tensors
from ..safetensors_rows import check_header, open_safetensors, row_reader
from .config import CONFIG, LoraConfig, read_config

_SAFETENSORS, _BIN = "adapter_model.safetensors", "adapter_model.bin"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PREFIX = "base_model.model."
# How the names of an adapter's tensors end: the longest that fits says what a tensor is.
A, B, WEIGHT = "A", "B", "weight"
_ENDINGS = {
    ".lora_A.weight": A,
    ".lora_B.weight": B,
    ".lora_embedding_A": A,
    ".lora_embedding_B": B,
    ".base_layer.weight": WEIGHT,  # of an embedding, which PEFT saves beside its adapter
    ".weight": WEIGHT,
}
_OTHERS = {
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".lora_B.bias": "LoRA with a bias",
    ".trainable_tokens_delta": "LoRA with single trainable tokens",
}
Read = Callable[[str, int, int], np.ndarray]


class Adapter(NamedTuple):
    """An opened adapter: `parts` names, by module, the tensors A and B or a whole weight."""

    config: LoraConfig
    parts: dict[str, dict[str, str]]
    tensors: dict[str, TensorInfo]
    reader: Callable[[], Read]  # a new function that reads rows of a tensor
    files: list[SourceFile]


def open_adapter(folder: Path) -> Adapter:
    """Read settings and headers; what is no LoRA adapter of PEFT's raises ValueError."""
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no folder"
        raise ValueError(f"{folder} is {kind}; name the folder that holds {CONFIG}")
    files = [source_file(folder / CONFIG)]
    config = read_config(folder / CONFIG)
    path = next((folder / n for n in (_SAFETENSORS, _BIN) if (folder / n).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds neither {_SAFETENSORS} nor {_BIN}")
    check_plain(path)
    file, tensors, reader = (_read_bin if path.name == _BIN else _read_safetensors)(path)
    files.append(file)
    try:
        parts = _sort(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Adapter(config, parts, tensors, reader, files)


_Opened = tuple[SourceFile, dict[str, TensorInfo], Callable[[], Read]]


def _read_bin(path: Path) -> _Opened:
    records = read_records(path)
    file = source_file(path)._replace(records=records)
    plain = read_tensors(path, records)
    tensors = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in plain.items()}

    def read(name: str, start: int, stop: int) -> np.ndarray:
        return plain[name].rows(start, stop)

    return file, tensors, lambda: read


def _read_safetensors(path: Path) -> _Opened:
    file = source_file(path)
    handle = open_safetensors(path)
    check_header(path)
    tensors = {}
    for name in handle.keys():  # noqa: SIM118  a handle is no mapping
        view = handle.get_slice(name)
        if view.get_dtype() not in _DTYPES:
            raise ValueError(
                f"{path}: {name} is {view.get_dtype()}; only {', '.join(_DTYPES)} are read"
            )
        tensors[name] = TensorInfo(tuple(view.get_shape()), _DTYPES[view.get_dtype()])
    return file, tensors, lambda: row_reader(dict.fromkeys(tensors, path))


def _sort(tensors: dict[str, TensorInfo]) -> dict[str, dict[str, str]]:
    """The tensors by module and part; one whose name says nothing is refused."""
    parts: dict[str, dict[str, str]] = {}
    errors = []
    for name in sorted(tensors):
        for ending, kind in _OTHERS.items():
            if name.endswith(ending):
                raise ValueError(f"{name}: {kind} is not supported; merge it with PEFT itself")
        ending = next((e for e in _ENDINGS if name.endswith(e)), None)
        if ending is None or not name.startswith(_PREFIX):
            errors.append(f"{name} has no place in the model")
            continue
        module = name.removeprefix(_PREFIX).removesuffix(ending)
        if parts.setdefault(module, {}).setdefault(_ENDINGS[ending], name) != name:
            errors.append(f"{name} and {parts[module][_ENDINGS[ending]]} are the same part")
    refuse_all(errors)
    if not parts:
        raise ValueError("it holds no tensor")
    return parts
