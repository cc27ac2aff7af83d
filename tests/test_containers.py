"""Weight files that lie or are damaged: the exact tensors, or one line that names the file."""

import json
import os
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import PARAMS, PLAIN, V4, bits, hf_tensors, write_folder, write_gguf, write_sharded
from random_models import sharp_params

from convert.formats.gguf.file import open_gguf
from convert.to_jax import to_jax
from jax_llama3 import load

NORM = "model.norm.weight"


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def assemble(header: bytes | dict, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def changed(**fields: object) -> Callable[[dict, bytes], bytes]:
    """One tensor's entry with other fields."""

    def change(header: dict, body: bytes) -> bytes:
        return assemble({**header, NORM: {**header[NORM], **fields}}, body)

    return change


def renamed(name: str) -> Callable[[dict, bytes], bytes]:
    return lambda header, body: assemble(
        {name if old == NORM else old: entry for old, entry in header.items()}, body
    )


def shifted(header: dict, body: bytes) -> bytes:
    """Every tensor four bytes on: a hole before the first."""
    moved = {
        name: {**entry, "data_offsets": [offset + 4 for offset in entry["data_offsets"]]}
        for name, entry in header.items()
    }
    return assemble(moved, bytes(4) + body)


def overlapping(header: dict, body: bytes) -> bytes:
    other = next(e["data_offsets"] for name, e in header.items() if name != NORM)
    begin = other[0]
    return assemble({**header, NORM: {**header[NORM], "data_offsets": [begin, begin + 192]}}, body)


def duplicated(header: dict, body: bytes) -> bytes:
    """The same tensor once more: first as another, then as itself."""
    text = json.dumps(header)
    entry = json.dumps(next(iter(header.values())))
    return assemble(text.replace("{", f'{{"{NORM}": {entry}, ', 1).encode(), body)


LIES = {
    "empty": lambda h, b: b"",
    "seven bytes": lambda h, b: b"1234567",
    "header length 0": lambda h, b: assemble(h, b, 0),
    "header length past the end": lambda h, b: assemble(h, b, 10**7),
    "header length 2^63": lambda h, b: assemble(h, b, 2**63),
    "header over 100 MB": lambda h, b: assemble(h, b, 100_000_001),
    "header not UTF-8": lambda h, b: assemble(b"\xff" * 64, b),
    "header not JSON": lambda h, b: assemble(b"{'a': 1}", b),
    "header an array": lambda h, b: assemble(b"[]", b),
    "header nested 100k deep": lambda h, b: assemble(b'{"a":' * 100_000, b),
    "duplicate keys": duplicated,
    "truncated by a byte": lambda h, b: assemble(h, b[:-1]),
    "truncated by half": lambda h, b: assemble(h, b[: len(b) // 2]),
    "trailing bytes": lambda h, b: assemble(h, b + b"x"),
    "a hole": shifted,
    "an overlap": overlapping,
    "begin after end": changed(data_offsets=[400, 208]),
    "negative offset": changed(data_offsets=[-192, 0]),
    "negative shape": changed(shape=[-48]),
    "fractional shape": changed(shape=[48.5]),
    "a shape that overflows": changed(shape=[2**32, 2**32, 48]),
    "a shape of another size": changed(shape=[47]),
    "unknown dtype": changed(dtype="F33"),
    "another dtype": changed(dtype="BF16"),
    "eight-bit floats": changed(dtype="F8_E4M3", shape=[192]),
    "a name with NUL": renamed("model.norm\x00.weight"),
    "a name that climbs": renamed("../../model.norm.weight"),
    "an empty name": renamed(""),
    "git-lfs pointer": lambda h, b: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a web page": lambda h, b: b"<!DOCTYPE html><title>Not Found</title>",
    "gzip": lambda h, b: b"\x1f\x8b\x08" + bytes(100),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("write", [write_folder, write_sharded], ids=["single", "sharded"])
def test_a_safetensors_file_that_lies_is_refused(
    tmp_path: Path, lie: Callable, write: Callable
) -> None:
    source = write(tmp_path / "in", V4, hf_tensors(PARAMS))
    paths = sorted(source.glob("*.safetensors"))
    path = next(path for path in paths if NORM in parts(path)[0])
    path.write_bytes(lie(*parts(path)))
    with pytest.raises(ValueError, match=r"safetensors|model\.norm|no place"):
        to_jax(source, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_what_the_file_is_instead_is_said(tmp_path: Path) -> None:
    for data, message in (
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"  <html>", "web page"),
        (b"\x1f\x8b", "gzip"),
    ):
        for name in ("model.safetensors", "model.gguf"):
            source = tmp_path / name.replace(".", "-")
            source.mkdir(exist_ok=True)
            (source / "config.json").write_text(json.dumps(V4))
            (source / name).write_bytes(data)
            path = source / name if name.endswith("gguf") else source
            with pytest.raises(ValueError, match=message):
                to_jax(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_what_stands_in_a_weight_files_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    path = source / name
    path.unlink(missing_ok=True)
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(source)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    with pytest.raises((ValueError, FileNotFoundError), match="model"):
        to_jax(path if name.endswith("gguf") else source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(
    name=st.sampled_from([NORM, "lm_head.weight", "model.layers.1.mlp.up_proj.weight"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "name", "gone", "more"]),
    value=st.one_of(
        st.integers(-(2**65), 2**65),
        st.lists(st.integers(-10, 2**33), max_size=3),
        st.sampled_from(["F32", "BF16", "F64", "I8", "", None, True, {}]),
        st.text(max_size=5),
    ),
)
def test_one_broken_field_gives_the_exact_tensors_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, field: str, value: Any
) -> None:
    place = tmp_path_factory.mktemp("broken")
    source = write_folder(place / "in", V4, hf_tensors(PARAMS))
    path = source / "model.safetensors"
    header, body = parts(path)
    if field == "name":
        header[str(value)] = header.pop(name)
    elif field == "gone":
        del header[name]
    elif field == "more":
        header[name]["more"] = value
    else:
        header[name][field] = value
    path.write_bytes(assemble(header, body))
    try:
        to_jax(source, place / "out")
    except ValueError:
        assert [entry.name for entry in place.iterdir()] == ["in"]
    else:
        assert bits(load(place / "out").params) == bits(PARAMS)


GGUF_PARAMS = sharp_params(11, PLAIN)


@hypothesis.settings(deadline=None, max_examples=120)
@hypothesis.given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_gguf_header_gives_the_exact_tensors_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = write_gguf(folder / "in.gguf", PLAIN, GGUF_PARAMS)
    data = bytearray(path.read_bytes())
    header = min(int(tensor.data_offset) for tensor in gguf.GGUFReader(path).tensors)
    data[place % header] ^= 1 << bit
    path.write_bytes(data)
    try:
        to_jax(path, folder / "out")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert [entry.name for entry in folder.iterdir()] == ["in.gguf"]
    else:
        assert bits(load(folder / "out").params) == bits(GGUF_PARAMS)


def test_a_gguf_header_costs_memory_like_its_size(tmp_path: Path) -> None:
    """Two million numbers and as many empty texts in fields that nobody reads."""
    path = tmp_path / "in.gguf"
    # 3,600,074 bytes of header, and 22 to the alignment
    numbers = struct.pack("<Q1sIIQ", 1, b"a", 9, 0, 2_000_000) + bytes(2_000_000)
    texts = struct.pack("<Q1sIIQ", 1, b"b", 9, 8, 200_000) + bytes(8 * 200_000)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + numbers + texts + bytes(22))
    tracemalloc.start()
    with pytest.raises(ValueError, match="it holds no tensors"):
        open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * path.stat().st_size


# --- GGUF's quantisations ---

WRITTEN = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def write_matrix(path: Path, kind: gguf.GGMLQuantizationType, data: np.ndarray) -> Path:
    """A file that is a whole model of one layer whose matrices all are of the given bytes' kind."""
    rows, row_bytes = data.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    dim = row_bytes // size * block
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, dim),
        (writer.add_feed_forward_length, dim),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 4),
        (writer.add_layer_norm_rms_eps, 1e-5),
    ):
        add(value)
    assert rows == dim
    matrices = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
    for name in ["token_embd.weight", *(f"blk.0.{matrix}.weight" for matrix in matrices)]:
        writer.add_tensor(name, data, raw_dtype=kind)
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, np.ones(dim, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", [*WRITTEN, *K_QUANTS])
def test_every_quantisation_is_what_its_library_makes_of_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.table.BLOCK_BYTES", 40_000)  # several blocks for each matrix
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    if name in WRITTEN:
        values = generator.normal(size=(256, 256)).astype(np.float32)
        data = gguf.quantize(values, kind).view(np.uint8).reshape(256, -1)
    else:
        # Random bits, but for the scales, which are halves: random bits there may be infinite.
        blocks = generator.integers(0, 256, (256 * 256 // block, size), np.uint8)
        places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(name, (0, 2))
        for place in places:
            scale = np.array([0.01 * (place + 1)], np.float16).view(np.uint8)
            blocks[:, place : place + 2] = scale
        data = blocks.reshape(256, -1)
    path = write_matrix(tmp_path / "in.gguf", kind, data)
    to_jax(path, tmp_path / "out")
    expected = gguf.dequantize(data, kind) if name != "BF16" else None
    layer = load(tmp_path / "out").params.layers[0]
    found = np.asarray(layer.w_up)
    assert found.dtype.name == {"F16": "float16", "BF16": "bfloat16"}.get(name, "float32")
    if name in ("F16", "BF16", "F32"):
        np.testing.assert_array_equal(found.view(np.uint8), data)
        return
    assert expected is not None
    np.testing.assert_array_equal(found, expected)
    assert expected.std() > 0
    rows = np.asarray(layer.wq).reshape(256, 256)
    np.testing.assert_array_equal(rows[:32], expected[0:64:2])
    np.testing.assert_array_equal(rows[32:64], expected[1:64:2])


def test_one_block_by_hand(tmp_path: Path) -> None:
    """Q8_0: a half as scale and 32 signed bytes, each a number."""
    block = np.float16(0.5).tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes()
    data = np.frombuffer(block * 32 * 1, np.uint8).reshape(32, 34)
    path = write_matrix(tmp_path / "in.gguf", gguf.GGMLQuantizationType.Q8_0, data)
    to_jax(path, tmp_path / "out")
    row = np.asarray(load(tmp_path / "out").params.layers[0].w_up)[7]
    assert row.tolist() == [number * 0.5 for number in range(-16, 16)]


def test_an_unsupported_quantisation_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> np.ndarray:
        raise NotImplementedError

    kind = gguf.GGMLQuantizationType.Q8_0
    data = gguf.quantize(np.ones((32, 32), np.float32), kind)
    path = write_matrix(tmp_path / "in.gguf", kind, data)
    monkeypatch.setattr(gguf, "dequantize", unsupported)
    with pytest.raises(ValueError, match=r"in\.gguf: .*weight: type Q8_0 is not supported"):
        open_gguf(path)


def test_two_shards_with_one_tensor(tmp_path: Path) -> None:
    """Equal or different, the index can name only one of them."""
    for factor in (1, 2):
        source = write_sharded(tmp_path / f"in{factor}", V4, hf_tensors(PARAMS))
        index = json.loads((source / "model.safetensors.index.json").read_text())
        other = next(f for f in index["weight_map"].values() if f != index["weight_map"][NORM])
        tensors = safetensors.numpy.load_file(source / other)
        tensors[NORM] = hf_tensors(PARAMS)[NORM] * factor
        safetensors.numpy.save_file(tensors, source / other)
        with pytest.raises(ValueError, match=rf"holds {NORM}, but the index says"):
            to_jax(source, tmp_path / "out")


def test_an_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    source = write_sharded(tmp_path / "in", V4, hf_tensors(PARAMS))
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for places, message in (
        ({**index["weight_map"], "ghost": index["weight_map"][NORM]}, "ghost"),
        ({n: f for n, f in index["weight_map"].items() if n != NORM}, NORM),
        ({}, "weight_map is missing or empty"),
        (["x"], "weight_map is missing or empty"),
    ):
        path.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ValueError, match=message):
            to_jax(source, tmp_path / "out")
    # What it says about sizes is not believed either way.
    path.write_text(json.dumps({"metadata": {"total_size": 7}, **index}))
    to_jax(source, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)
