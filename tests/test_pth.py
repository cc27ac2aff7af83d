"""`.pth` files: plain tensors come out exactly, however they are stored; everything else is refused."""

import collections
import importlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from convert.formats.pth import _check_opcodes, open_pth
from convert.source import hash_files, source_file

pytestmark = pytest.mark.reference


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, after the checks that a conversion makes."""
    file = source_file(path)
    tensors, records = open_pth(path)
    hash_files([file._replace(records=records)])
    return {name: tensor.rows(0, tensor.shape[0]) for name, tensor in tensors.items()}


def save(path: Path, values: object, **options: object) -> Path:
    torch.save(values, path, **options)
    return path


A = torch.arange(24, dtype=torch.float32).reshape(4, 6)
PLAIN = {"a": A, "b": torch.ones(5, dtype=torch.bfloat16) * 3}


def test_plain_tensors_are_read_bit_for_bit(tmp_path: Path) -> None:
    found = read(save(tmp_path / "x.pth", PLAIN))
    np.testing.assert_array_equal(found["a"], A.numpy())
    assert str(found["b"].dtype) == "bfloat16"
    assert found["b"].tolist() == [3] * 5


STORED = {
    "aliased": lambda: {"a": A, "b": A},
    "a view at an offset": lambda: {"a": A, "b": A[2:]},
    "columns": lambda: {"a": A[:, 2:4]},
    "transposed": lambda: {"a": A.T},
    "every second row": lambda: {"a": A[::2]},
    "parameters": lambda: {"a": torch.nn.Parameter(A.clone())},
    "half": lambda: {"a": A.half()},
    "in an OrderedDict": lambda: collections.OrderedDict(a=A, b=A),
    "as a module's state": lambda: torch.nn.Linear(3, 5).state_dict(),
}


@pytest.mark.parametrize("make", STORED.values(), ids=STORED.keys())
def test_aliased_and_strided_storage_is_read_exactly(tmp_path: Path, make: Callable) -> None:
    values = make()
    found = read(save(tmp_path / "x.pth", values))
    for name, tensor in values.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())
    if "a" not in values:
        return
    tensors, _ = open_pth(tmp_path / "x.pth")
    np.testing.assert_array_equal(tensors["a"].rows(1, 2), values["a"].detach().numpy()[1:2])


ran = []


class Runs:
    """A pickle that would run a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


HOSTILE = {
    "os.system": lambda mark: Runs(os.system, f"touch {mark}"),
    "importlib": lambda mark: Runs(importlib.import_module, "antigravity"),
    "eval": lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Runs(open, str(mark), "w"),
    "torch.load": lambda mark: Runs(torch.load, str(mark)),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("place", ["value", "whole", "beside"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, make: Callable, place: str) -> None:
    mark = tmp_path / "mark"
    hostile = make(mark)
    values = {"value": {"a": hostile}, "whole": hostile, "beside": {"a": A, "b": hostile}}
    path = save(tmp_path / "x.pth", values[place])
    with pytest.raises(ValueError, match=r"x\.pth: refused, it holds more than plain tensors"):
        read(path)
    assert not mark.exists()


def copy_bomb(levels: int) -> dict:
    """A dict made of a dict, and so on."""
    values = {str(index): A for index in range(10)}
    return {"a": [collections.OrderedDict(values) for _ in range(levels)]}


BOMBS = {
    "of a size": ({"a": Runs(torch.Size, bytearray(100))}, "torch.Size|bytearray"),
    "of bytes": ({"a": bytearray(100)}, "bytearray"),
    "of dicts": ({str(index): {} for index in range(10**5)}, "data.pkl of a sensible size"),
    "of lists": ({"a": [A] * 5}, "is a list"),
    "of copies": (copy_bomb(50), "is a list"),
}


@pytest.mark.parametrize(("values", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_costs_nothing(tmp_path: Path, values: dict, message: str) -> None:
    path = save(tmp_path / "x.pth", values)
    with pytest.raises(ValueError, match=rf"x\.pth: .*({message})"):
        read(path)


def test_a_bomb_of_hashes_is_not_lit(tmp_path: Path) -> None:
    """A dict's key whose hash is that of two keys, whose hashes are those of two, 60 times."""
    path = save(tmp_path / "x.pth", PLAIN)
    levels = b"h\x00h\x00\x86q\x00" * 60
    bomb = b"\x80\x02}K\x01\x85q\x00" + levels + b"K\x01s."
    repack(path, lambda name, data: bomb if name.endswith("data.pkl") else data)
    with pytest.raises(ValueError, match="it uses an object twice"):
        read(path)


def test_the_scan_knows_what_may_be_used_again(tmp_path: Path) -> None:
    """Opcodes as torch writes them, and ones that would grow."""
    ordered = [("GLOBAL", "collections OrderedDict"), ("BINPUT", 0)]
    _check_opcodes(iter([*ordered, ("EMPTY_TUPLE", None), ("REDUCE", None), ("BINPUT", 1)]))
    for opcodes, message in (
        ([*ordered, ("BINGET", 0), ("TUPLE1", None), ("REDUCE", None)], "fills a dict"),
        ([("EMPTY_DICT", None), ("BINPUT", 0), ("BINGET", 0)], "twice"),
        ([("TUPLE2", None), ("BINPUT", 0), ("BINGET", 0)], "twice"),
        (
            [*ordered, ("EMPTY_TUPLE", None), ("REDUCE", None), ("BINPUT", 1), ("BINGET", 1)],
            "twice",
        ),
        (
            [("BINUNICODE", "a"), ("BINPUT", 0), ("TUPLE1", None), ("BINPUT", 0), ("BINGET", 0)],
            "twice",
        ),
        ([("GLOBAL", "torch Size")], "torch.Size"),
        ([("STACK_GLOBAL", None)], "another protocol"),
    ):
        with pytest.raises(ValueError, match=message):
            _check_opcodes(iter(opcodes))


REFUSED = {
    "nested": {"model": {"a": A}},
    "a number": {"a": 3},
    "a list": [A],
    "a tensor alone": A,
    "a name that is none": {0: A},
    "integers": {"a": A.long()},
    "float64": {"a": A.double()},
    "bool": {"a": A > 1},
    "complex": {"a": A.to(torch.complex64)},
    "sparse": {"a": A.to_sparse()},
    "expanded": {"a": torch.ones(1).expand(10**6)},
    "empty": {"a": torch.ones(0, 4)},
    "scalar": {"a": torch.tensor(1.0)},
    "on no device": {"a": A.to("meta")},
}


@pytest.mark.parametrize("values", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, values: object) -> None:
    with pytest.raises(ValueError, match=r"x\.pth: "):
        read(save(tmp_path / "x.pth", values))


def repack(
    path: Path,
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
    compression: int = zipfile.ZIP_STORED,
    extra: tuple = (),
) -> None:
    """The same archive with its records changed, and sums that match the change."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (*records, *extra):
            archive.writestr(name, change(name, data))


def patch(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def data_place(path: Path) -> int:
    _, records = open_pth(path)
    return next(record.offset for record in records if record.name.endswith("data/0"))


def flip_weight(path: Path) -> None:
    place = data_place(path) + 5
    patch(path, lambda data: flipped(data, place))


def flip_crc(path: Path) -> None:
    at = path.read_bytes().rindex(b"PK\x01\x02")  # a directory entry; its CRC stands 16 bytes on
    while b"data/0" not in path.read_bytes()[at : at + 60]:
        at = path.read_bytes().rindex(b"PK\x01\x02", 0, at)
    patch(path, lambda data: flipped(data, at + 16))


def shortened(name: str, data: bytes) -> bytes:
    return data[:-4] if name.endswith("data/0") else data


def lengthened(name: str, data: bytes) -> bytes:
    return data + bytes(4) if name.endswith("data/0") else data


def add_twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        repack(path, extra=(("x/data/0", bytes(96)),))


def as_tar(path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(path, "storages")
    path.write_bytes(buffer.getvalue())


DAMAGED = {
    "a flipped weight": flip_weight,
    "a flipped CRC": flip_crc,
    "deflated": lambda path: repack(path, compression=zipfile.ZIP_DEFLATED),
    "a short record": lambda path: repack(path, shortened),
    "a long record": lambda path: repack(path, lengthened),
    "a record twice": add_twice,
    "a record of nothing": lambda path: repack(path, extra=(("x/data/7", b"1234"),)),
    "two pickles": lambda path: repack(path, extra=(("y/data.pkl", b"N."),)),
    "truncated by a byte": lambda path: patch(path, lambda data: data[:-1]),
    "truncated by half": lambda path: patch(path, lambda data: data[: len(data) // 2]),
    "trailing bytes": lambda path: patch(path, lambda data: data + bytes(9)),
    "leading bytes": lambda path: patch(path, lambda data: bytes(64) + data),
    "empty": lambda path: path.write_bytes(b""),
    "seven bytes": lambda path: path.write_bytes(b"1234567"),
    "an empty archive": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "a web page": lambda path: path.write_bytes(b"<!DOCTYPE html><p>404"),
    "a git-lfs pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
    "gzip": lambda path: path.write_bytes(b"\x1f\x8b" + bytes(40)),
    "torch's old format": lambda path: save(path, PLAIN, _use_new_zipfile_serialization=False),
    "a bare pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "a tar": as_tar,
    "big-endian": lambda path: repack(
        path, lambda name, data: b"big" if name.endswith("byteorder") else data
    ),
    "a damaged pickle": lambda path: repack(
        path, lambda name, data: data[:20] if name.endswith("data.pkl") else data
    ),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_container_is_refused(tmp_path: Path, change: Callable) -> None:
    path = save(tmp_path / "x.pth", PLAIN)
    read(path)
    change(path)
    with pytest.raises(ValueError, match=r"x\.pth: "):
        read(path)


def test_older_torch_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.formats.pth._reads_nothing_for_meta", lambda torch: False)
    found = read(save(tmp_path / "x.pth", {**PLAIN, "c": A[1:], "d": A.T}))
    np.testing.assert_array_equal(found["a"], A.numpy())
    np.testing.assert_array_equal(found["c"], A[1:].numpy())
    np.testing.assert_array_equal(found["d"], A.T.numpy())
    with pytest.raises(ValueError, match="it names"):
        read(save(tmp_path / "y.pth", {"a": Runs(os.system, "true")}))


def test_hints_name_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for data, message in (
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<html>", "web page"),
        (b"\x1f\x8b" + bytes(40), "gzip"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read(path)


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling", "absent"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.pth"
    if kind == "directory":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises((ValueError, FileNotFoundError), match=r"x\.pth is (missing|no plain file)"):
        read(path)


def test_a_claimed_size_costs_nothing(tmp_path: Path) -> None:
    """A pickle of a hundred bytes that speaks of a terabyte."""
    path = save(tmp_path / "x.pth", PLAIN)

    def claim(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        return data.replace(b"K\x18", b"J" + struct.pack("<i", 2**31 - 1), 1)

    repack(path, claim)
    with pytest.raises(ValueError, match=r"x\.pth: "):
        read(path)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_any_flipped_bit_is_harmless_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = save(tmp_path_factory.getbasetemp() / "flip.pth", PLAIN)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = read(path)
    except ValueError as error:
        assert "flip.pth" in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(found["a"], A.numpy())
        assert found["b"].tolist() == [3] * 5
