"""A GGUF file whole or in parts, FILE-00001-of-0000N.gguf: fields and tensors of all of them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from ...source import SourceFile, source_file
from ..safetensors_rows import hint
from .header import GgufHeader, GgufTensor, read_header

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class GgufFiles(NamedTuple):
    """Fields, tensors, and the file of each tensor."""

    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]
    paths: dict[str, Path]
    files: list[SourceFile]


def open_parts(path: Path) -> GgufFiles:
    """Read the headers of a file and of the parts beside it; what is off raises ValueError.

    Any part may be named. One that is missing raises FileNotFoundError.
    """
    first = source_file(path)
    header = _read(path)
    count = header.fields.get(_COUNT, 1)
    if type(count) is not int:
        raise ValueError(f"{path}: {_COUNT} {count!r} is not a number")
    if count <= 1:
        return GgufFiles(*header, dict.fromkeys(header.tensors, path), [first])
    paths = _part_paths(path, header, count)
    files = [first if part == path else source_file(part) for part in paths]
    headers = [header if part == path else _read(part) for part in paths]
    return _join(paths, headers, files)


def _read(path: Path) -> GgufHeader:
    try:
        return read_header(path)
    except ImportError:
        raise ModuleNotFoundError(
            "reading GGUF needs the package gguf: pip install 'jax_llama3[convert]'"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: not a sound GGUF file{hint(path)}: {error}") from None


def _part_paths(path: Path, header: GgufHeader, count: int) -> list[Path]:
    number = header.fields.get(_NUMBER)
    name = _NAME.fullmatch(path.name)
    places = (-1, 0) if name is None else (int(name[2]) - 1, int(name[3]))
    if name is None or places != (number, count) or places[0] >= count:
        wanted = f"-{number + 1:05}-of-{count:05}.gguf" if type(number) is int else "its number"
        raise ValueError(
            f"{path}: it is one of {count} parts, and its name does not end in {wanted}; give it "
            "its name back, and the other parts theirs"
        )
    paths = []
    for index in range(1, count + 1):
        paths.append(path.with_name(f"{name[1]}-{index:05}-of-{name[3]}.gguf"))
        if not paths[-1].exists():
            raise FileNotFoundError(f"{paths[-1]} is missing; {path.name} is one of {count} parts")
    return paths


def _join(paths: list[Path], headers: list[GgufHeader], files: list[SourceFile]) -> GgufFiles:
    fields, tensors, places = {}, {}, {}
    total = headers[0].fields.get(_TENSORS)
    for index, (path, header) in enumerate(zip(paths, headers, strict=True)):
        said = {_NUMBER: index, _COUNT: len(paths), _TENSORS: total}
        for key, value in said.items():
            if (found := header.fields.get(key)) != value:
                raise ValueError(
                    f"{path}: {key} is {found}, not {value}; is it a part of another model?"
                )
        for key, value in header.fields.items():
            # The first part has the fields; others repeat them or have none.
            if key not in said and _bytes(fields.setdefault(key, value)) != _bytes(value):
                raise ValueError(
                    f"{path}: {key} differs from the parts before it; is it a part of another model?"
                )
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise ValueError(f"{path}: {name} is in {places[name].name} already")
            tensors[name], places[name] = tensor, path
    if len(tensors) != total:
        raise ValueError(
            f"{paths[0]}: its {len(paths)} parts hold {len(tensors)} tensors, and {_TENSORS} is "
            f"{total}; are they parts of different models?"
        )
    return GgufFiles(fields, tensors, places, files)


def _bytes(value: Any) -> Any:
    """A field as something that can be compared: an array of numbers by its bytes."""
    return value.tobytes() if hasattr(value, "tobytes") else value
