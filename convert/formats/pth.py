"""A file of torch.save's, looked at without running it: where each tensor's bytes lie, and how."""

import math
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..source import Record
from .safetensors_rows import hint

# What a pickle may name, and how large it may be: so many bytes, and so many more for each record.
# Meta's pickles have 0.2 kB for each record.
_NAMED = re.compile(
    r"torch \w+Storage|torch\._utils _rebuild_(tensor_v2|parameter)|collections OrderedDict"
)
_PICKLE_BYTES, _RECORD_BYTES = 1 << 16, 1 << 10
_PUT, _GET = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_HAS_DESCRIPTOR, _ENCRYPTED = 0x8, 0x1
# The number that torch's format from before 1.6 begins with, as the pickle of it.
_OLD_MAGIC = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


class PthTensor(NamedTuple):
    """A tensor of a file: its elements begin at `offset`, `strides` bytes apart."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`, whose bytes alone are read."""
        dtype = np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)
        shape = (stop - start, *self.shape[1:])
        offset = self.offset + start * self.strides[0]
        if self.strides == _contiguous(self.shape, dtype.itemsize):
            count = math.prod(shape)
            return self._read(dtype, count, offset).reshape(shape)
        extent = sum((n - 1) * step for n, step in zip(shape, self.strides, strict=True))
        data = self._read(np.dtype(np.uint8), extent + dtype.itemsize, offset)
        return np.ndarray(shape, dtype, data, strides=self.strides).copy()

    def _read(self, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        data = np.fromfile(self.path, dtype, count, offset=offset)
        if data.size != count:
            raise ValueError(f"{self.path}: {self.name} ends too early; the file has changed")
        return data


def read_tensors(path: Path, records: tuple[Record, ...]) -> dict[str, PthTensor]:
    """The tensors of a file, by name, given its records.

    Only plain tensors are taken: the pickle may name nothing else, and nothing it names is run.
    """
    _check_pickle(path, next(record for record in records if record.name.endswith("data.pkl")))
    tensors = _tensors(path, _load(path))
    stored = [record for record in records if re.search(r"(^|/)data/\d+$", record.name)]
    _check_storages(path, tensors, stored)
    return {name: _describe(path, name, tensor) for name, tensor in tensors.items()}


def open_pth(path: Path) -> tuple[dict[str, PthTensor], tuple[Record, ...]]:
    """The tensors of a file, by name, and the records whose CRC-32 its bytes must match."""
    records = read_records(path)
    return read_tensors(path, records), records


def read_records(path: Path) -> tuple[Record, ...]:
    """The records of the archive, after a check that they are plain, apart and inside the file.

    torch itself checks little of this, and reads rubbish from what is compressed or too short.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entries = archive.infolist()
            records = tuple(_record(file, entry) for entry in entries)
            begins = [entry.header_offset for entry in entries] + [archive.start_dir]
            _check_disjoint(records, sorted(begins))
            if archive.comment or _tail(file) != b"PK\x05\x06":
                raise ValueError("bytes follow its end")
            orders = [entry for entry in entries if entry.filename.endswith("byteorder")]
            if any(archive.open(entry).read(16) != b"little" for entry in orders):
                raise ValueError("its numbers are big-endian; save it again with torch.save")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, IndexError) as error:
        raise ValueError(
            f"{path}: not a zip archive as torch.save writes it{hint(path) or _older(path)}: "
            f"{error or 'empty'}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # torch looks names up without regard to case.
    if len({record.name.lower() for record in records}) != len(records):
        raise ValueError(f"{path}: it holds a record twice")
    pickles = [record for record in records if record.name.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].size > _PICKLE_BYTES + _RECORD_BYTES * len(records):
        raise ValueError(f"{path}: it does not hold one data.pkl of a sensible size")
    return records


def _older(path: Path) -> str:
    """Words about the formats that torch.save wrote before 1.6, which have no records; "" for others."""
    with open(path, "rb") as file:
        head = file.read(262)
    again = "; load it in torch with weights_only=True, and save it again with torch.save"
    if head[:1] == b"\x80" and head[2:].startswith(_OLD_MAGIC):
        return f" but torch's format from before 1.6{again}"
    if head[257:] == b"ustar":
        return f" but a tar, torch's first format{again}"
    return " but a bare pickle; save its tensors with torch.save" if head[:1] == b"\x80" else ""


def _record(file: Any, entry: zipfile.ZipInfo) -> Record:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        raise ValueError(
            f"{entry.filename} is compressed or encrypted; save it again with torch.save"
        )
    if entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} has two sizes")
    if entry.header_offset < 0:
        raise ValueError(f"{entry.filename} lies before the beginning")
    file.seek(entry.header_offset)
    fields = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    name = file.read(fields[9])
    if fields[0] != b"PK\x03\x04" or name != entry.orig_filename.encode() or fields[3] != 0:
        raise ValueError(f"{entry.filename} has two different headers")
    if not fields[2] & _HAS_DESCRIPTOR and fields[6] != entry.CRC:
        raise ValueError(f"{entry.filename} has two different headers")
    offset = entry.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10]
    return Record(entry.filename, offset, entry.file_size, entry.CRC)


def _check_disjoint(records: tuple[Record, ...], begins: list[int]) -> None:
    """Each record must end before the next one's header, the last one before the directory."""
    ends = sorted(record.offset + record.size for record in records)
    if begins[0] != 0 or any(end > begin for end, begin in zip(ends, begins[1:], strict=True)):
        raise ValueError("its records overlap, or do not begin at its beginning")


def _tail(file: Any) -> bytes:
    file.seek(-22, 2)  # the end record, without a comment
    return file.read(4)


def _check_pickle(path: Path, record: Record) -> None:
    """Refuse a pickle that names more than tensors need, or that grows as it is interpreted."""
    with open(path, "rb") as file:
        file.seek(record.offset)
        data = file.read(record.size)
    try:
        _check_opcodes((code.name, argument) for code, argument, _ in pickletools.genops(data))
    except ValueError as error:
        raise ValueError(f"{path}: refused, it holds more than plain tensors: {error}") from None


def _check_opcodes(opcodes: Iterator[tuple[str, Any]]) -> None:
    """Refuse a pickle that takes anything but names, texts and tensors from its memo.

    A list that holds another list twice, and that one a third list twice, and so on, grows from a
    hundred bytes to more than any memory holds. A pickle can only write one with its memo. A dict may
    be filled only directly after it was made.
    """
    recallable: dict[Any, str] = {}
    last, made = "", ""  # the opcode before, those of the memo left out, and what it made
    for name, argument in opcodes:
        if name in _PUT:
            if made:
                recallable[argument] = made
            else:
                recallable.pop(argument, None)
            continue
        if made == "collections OrderedDict" and name != "EMPTY_TUPLE":
            raise ValueError("it fills a dict as it makes it")
        if name == "GLOBAL":
            if not _NAMED.fullmatch(argument):
                raise ValueError(f"it names {argument.replace(' ', '.')}")
            made = argument
        elif name == "STACK_GLOBAL":
            raise ValueError("its pickle is of another protocol; save it again with torch.save")
        elif name in _GET:
            if argument not in recallable:
                raise ValueError("it uses an object twice")
            made = recallable[argument]
        elif name in _TEXTS or (name == "REDUCE" and last != "EMPTY_TUPLE"):
            made = name
        else:
            made = ""
        last = name


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise ModuleNotFoundError(
            "reading .pth and .bin files needs the package torch: pip install 'jax_llama3[convert]'"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore"):
            return _load_places(torch, path)
    except Exception as error:  # a damaged or hostile file may end in any exception
        text = " ".join(str(error).split())
        found = re.search(r"GLOBAL (\S+)", text)
        reason = re.search(r"WeightsUnpickler error: (.*?)( Check the documentation|$)", text)
        said = f"it names {found[1]}" if found else (reason[1] if reason else text)[:200]
        raise ValueError(f"{path}: refused, it holds more than plain tensors: {said}") from None


def _load_places(torch: Any, path: Path) -> Any:
    """The object in the pickle, whose tensors have places in the file and no numbers.

    torch runs only those instructions of the pickle that make plain tensors.
    """
    if _reads_nothing_for_meta(torch):
        return torch.load(path, map_location="meta", weights_only=True)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.load(path, weights_only=True)


def _reads_nothing_for_meta(torch: Any) -> bool:
    """Whether this torch reads no numbers of tensors for the meta device; torch 2.10 reads them."""
    return hasattr(torch.serialization, "_is_meta_location")


def _tensors(path: Path, values: Any) -> dict[str, Any]:
    import torch

    if not isinstance(values, dict):
        raise ValueError(f"{path}: it holds a {type(values).__name__}, not a dict of tensors")
    for name, tensor in values.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            shown = name if isinstance(name, str) else f"an entry named by a {type(name).__name__}"
            raise ValueError(f"{path}: {shown} is a {type(tensor).__name__}, not a named tensor")
        plain = tensor.layout == torch.strided and not tensor.is_quantized
        if not plain or _place(tensor) is None or tensor.is_neg() or tensor.is_conj():
            raise ValueError(f"{path}: {name} is not a plain tensor")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{path}: {name} is {kind}; only float32, float16, bfloat16 are read")
        if tensor.numel() == 0 or tensor.dim() == 0:
            raise ValueError(f"{path}: {name} has the shape {list(tensor.shape)}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} is larger than the bytes that are stored for it")
    return values


def _place(tensor: Any) -> int | None:
    """Where in the file the tensor's storage begins."""
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None)


def _check_storages(path: Path, tensors: dict[str, Any], stored: list[Record]) -> None:
    """Storages and records must be the same stretches of the file, one for one.

    A record that is shorter than its tensors believe would lend them the bytes of the next.
    """
    stretches = {(_place(tensor), tensor.untyped_storage().nbytes()) for tensor in tensors.values()}
    if stretches != {(record.offset, record.size) for record in stored}:
        raise ValueError(
            f"{path}: its {len(stored)} records are not the {len(stretches)} storages of its tensors; "
            "save it again with torch.save"
        )


def _describe(path: Path, name: str, tensor: Any) -> PthTensor:
    size = tensor.element_size()
    place = _place(tensor)
    assert place is not None
    return PthTensor(
        path=path,
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        strides=tuple(step * size for step in tensor.stride()),
        offset=place + tensor.storage_offset() * size,
    )


def _contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))
