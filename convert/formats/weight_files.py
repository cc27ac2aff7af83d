"""The weights of a folder: one file, or several that an index names; safetensors or torch's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_llama3.checkpoint.manifest import read_json

from ..source import SourceFile, TensorInfo, source_file
from .pth import read_records, read_tensors
from .quantized.stored import PLAIN
from .safetensors_rows import check_header, open_safetensors, row_reader


class FileSet(NamedTuple):
    """The names that the files of one set of weights have."""

    single: str
    listing: str  # the index: which tensor is in which file
    pattern: str  # of every file that could belong to it


HUGGINGFACE = FileSet("model.safetensors", "model.safetensors.index.json", "*.safetensors")
PYTORCH = FileSet("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin")
CONSOLIDATED = FileSet(
    "consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated*.safetensors"
)
# Beside a model may lie the same one in another dtype, such as model.fp16.safetensors.
_VARIANT = re.compile(r"model\.\w+(-\d+-of-\d+)?\.safetensors|model-\d+-of-\d+\.\w+\.safetensors")
_DROPPED = ".rotary_emb.inv_freq"  # RoPE's frequencies, which older versions of transformers stored
OnFile = Callable[[SourceFile], None]
Headers = dict[str, dict[str, TensorInfo]]  # by file name, then by tensor name
Rows = Callable[[str, int, int], np.ndarray]


class Weights(NamedTuple):
    """The tensors of a set of files, by the names that the files give them."""

    tensors: dict[str, TensorInfo]
    read: Rows
    files: list[SourceFile]
    decisions: list[str]
    paths: dict[str, Path]  # of the file that holds each tensor


def open_weights(
    folder: Path,
    names: FileSet,
    on_file: OnFile = lambda file: None,
    dtypes: dict[str, str] = PLAIN,
) -> Weights:
    """Read the headers of a set of files; what is off raises ValueError.

    `on_file` is called with each file whose header takes long to read. `dtypes` are those that
    safetensors may be stored in, with numpy's names for them.
    """
    places = _read_index(folder, names)
    shards = sorted(set(places.values())) or [names.single]
    variants = _variants(folder, names, shards)
    files = [source_file(folder / file) for file in shards]
    headers, read, files = (
        _open_torch(files, on_file) if names is PYTORCH else _open_safetensors(files, dtypes)
    )
    if places:
        _check_index(folder, places, headers)
        files.insert(0, source_file(folder / names.listing))
    tensors = {name: info for header in headers.values() for name, info in header.items()}
    dropped = sorted(name for name in tensors if name.endswith(_DROPPED))
    used = names.listing if places else names.single
    return Weights(
        tensors={name: info for name, info in tensors.items() if name not in dropped},
        read=read,
        files=files,
        decisions=[
            *(f"{name} dropped: RoPE frequencies come from the config" for name in dropped),
            *(not_read(name, used) for name in variants[:1]),
        ],
        paths={name: folder / file for file, header in headers.items() for name in header},
    )


def not_read(name: str, used: str) -> str:
    """The note on a file of weights that stands beside those that are read."""
    return f"note: {name} is not read; the weights are those of {used}"


def _open_safetensors(
    files: list[SourceFile], dtypes: dict[str, str]
) -> tuple[Headers, Rows, list[SourceFile]]:
    headers = {file.path.name: _safetensors_header(file.path, dtypes) for file in files}
    places = {name: file.path for file in files for name in headers[file.path.name]}
    return headers, row_reader(places), files


def _safetensors_header(path: Path, dtypes: dict[str, str]) -> dict[str, TensorInfo]:
    handle = open_safetensors(path)
    check_header(path)
    tensors = {}
    for name in handle.keys():  # noqa: SIM118  a handle is no mapping
        view = handle.get_slice(name)
        dtype = view.get_dtype()
        if dtype not in dtypes and not name.endswith(_DROPPED):
            how = (
                "; if it is quantised, config.json must say how, under quantization_config"
                if dtypes is PLAIN
                else ""
            )
            raise ValueError(f"{path}: {name} is {dtype}; only {', '.join(dtypes)} are read{how}")
        tensors[name] = TensorInfo(tuple(view.get_shape()), dtypes.get(dtype) or str(dtype))
    return tensors


def _open_torch(files: list[SourceFile], on_file: OnFile) -> tuple[Headers, Rows, list[SourceFile]]:
    files = [file._replace(records=read_records(file.path)) for file in files]
    for file in files:
        on_file(file)
    opened = {file.path.name: read_tensors(file.path, file.records) for file in files}
    stored = {name: tensor for tensors in opened.values() for name, tensor in tensors.items()}
    headers = {
        file: {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for file, tensors in opened.items()
    }
    return headers, lambda name, start, stop: stored[name].rows(start, stop), files


def _read_index(folder: Path, names: FileSet) -> dict[str, str]:
    """Tensor name to file name, as the index says it; empty without one."""
    single, index = folder / names.single, folder / names.listing
    if not index.exists():
        if not single.exists():
            if any(folder.glob(f"{single.stem}-*{single.suffix}")):
                raise FileNotFoundError(f"{index} is missing")
            raise FileNotFoundError(f"{folder} holds neither {names.single} nor {names.listing}")
        return {}
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map is missing or empty")
    for file in places.values():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise ValueError(f"{index}: {file!r} is not a plain file name")
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing; the index names it")
    if single.exists() and set(places.values()) != {single.name}:
        raise ValueError(f"{folder} holds both {single.name} and an index of other shards")
    return places


def _variants(folder: Path, names: FileSet, shards: list[str]) -> list[str]:
    """The files beside the set that hold the model in another dtype, by their names.

    Any other file that looks like one of the set's but does not belong to it raises ValueError.
    """
    others = {path.name for path in folder.glob(names.pattern)} - {*shards}
    if names is HUGGINGFACE:
        others -= {path.name for path in folder.glob(CONSOLIDATED.pattern)}
    variants = sorted(name for name in others if _VARIANT.fullmatch(name))
    if wrong := others - {*variants}:
        raise ValueError(f"{folder / min(wrong)} belongs to no index; move it away")
    return variants


def _check_index(folder: Path, places: dict[str, str], headers: Headers) -> None:
    """Every tensor must be in the file that the index says, and in no other."""
    for file, tensors in headers.items():
        for name in tensors:
            if places.get(name) != file:
                where = f"the index says {places[name]}" if name in places else "the index does not"
                raise ValueError(f"{folder / file} holds {name}, but {where}")
    if absent := sorted(set(places) - {name for tensors in headers.values() for name in tensors}):
        raise ValueError(f"{folder}: the index names tensors its shards lack: {absent[0]}, ...")
