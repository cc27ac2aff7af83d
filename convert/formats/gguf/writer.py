"""A GGUF file as llama.cpp reads it, filled tensor by tensor."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_llama3.checkpoint.stream import CheckedFile, Tensor, write_tensors
from jax_llama3.checkpoint.writer import OutputFile

from .header import read_header

_ALIGNMENT = 32  # the format's default


class GgufPart(NamedTuple):
    """A tensor on its way to a file, its bytes being those of ggml's type `kind`."""

    tensor: Tensor
    kind: str
    shape: tuple[int, ...]  # of the numbers, in NumPy's order


def gguf_output(name: str, fields: dict[str, Any], parts: list[GgufPart]) -> OutputFile:
    """The file as an output, whose size counts the tensors alone."""
    size = sum(_padded(part.tensor.nbytes) for part in parts)
    return OutputFile(name, size, partial(_write, fields=fields, parts=parts))


def _write(path: Path, bar: Any, *, fields: dict[str, Any], parts: list[GgufPart]) -> dict:
    """Stream the tensors into one new file; returns its sha256, size in bytes and tensors."""
    header = _header(path, fields, parts)
    size = len(header) + sum(_padded(part.tensor.nbytes) for part in parts)
    with closing(CheckedFile(path, size)) as file:

        def align() -> None:
            file.write(bytes(_padded(file.size) - file.size))

        file.write(header)
        tensors = [part.tensor for part in parts]
        entries = write_tensors(tensors, file.write, bar, lambda tensor: align())
        align()
        written = file.finish()
    _check_header(path, fields, parts)
    for part in parts:
        types = {"shape": list(part.shape), "dtype": part.kind.lower()}
        entries[part.tensor.name] = {**entries[part.tensor.name], **types}
    return {**written, "tensors": entries}


def _header(path: Path, fields: dict[str, Any], parts: list[GgufPart]) -> bytes:
    """Everything before the tensors' bytes, as the gguf library writes it."""
    import gguf

    writer = gguf.GGUFWriter(None, fields["general.architecture"])
    for key, value in fields.items():
        if key != "general.architecture":  # which the library has written
            _add(writer, key, value)
    for part in parts:
        tensor, kind = part.tensor, gguf.GGMLQuantizationType[part.kind]
        writer.add_tensor_info(
            tensor.name, tensor.shape, tensor.dtype, tensor.nbytes, raw_dtype=kind
        )
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _check_header(path: Path, fields: dict[str, Any], parts: list[GgufPart]) -> None:
    """Refuse a file whose header is not read back as what was to be written."""
    header = read_header(path)
    found = {name: (tensor.kind, tensor.shape) for name, tensor in header.tensors.items()}
    same = found == {part.tensor.name: (part.kind, part.shape) for part in parts}
    for key, value in fields.items():
        # An empty text or list is not written.
        if value not in ("", []) and not np.array_equal(
            np.asarray(header.fields.get(key)),
            np.float32(value) if isinstance(value, float) else value,
        ):
            raise OSError(f"{path}: field {key} was not read back as written")
    if not same:
        raise OSError(f"{path}: its tensors were not read back as written")


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
