"""One random model in every format becomes the same tree; what is damaged or unknown is refused."""

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    PARAMS,
    PLAIN,
    V4,
    V5,
    bits,
    divisors,
    hf_tensors,
    write_folder,
    write_gguf,
    write_sharded,
)
from commands import run
from random_models import LLAMA_3_1, TINY, replace, sharp_params
from tokenizer_files import generation, rank_file, sentencepiece_like

from convert.__main__ import main
from convert.formats.huggingface.folder import parse_config
from convert.formats.huggingface.tokenizer import huggingface_texts
from convert.formats.tokenizer import choose_chat_format
from convert.table import flat_shape
from convert.to_jax import to_jax
from jax_llama3 import RopeScaling, load
from jax_llama3.checkpoint.folder import OLD
from jax_llama3.checkpoint.manifest import PARTIAL, read_manifest
from jax_llama3.checkpoint.verification import verify
from jax_llama3.model.params import AXES, abstract_params, contracted_axes, named_leaves
from jax_llama3.text.tokenizer import GENERATION, JSON, MODEL, TEMPLATE, tokenizer_from_files


@pytest.mark.parametrize("config", [V4, V5], ids=["v4", "v5"])
@pytest.mark.parametrize("write", [write_folder, write_sharded], ids=["single", "sharded"])
def test_huggingface_folders_give_the_tree_bit_for_bit(
    tmp_path: Path, config: dict, write: object
) -> None:
    to_jax(write(tmp_path / "in", config, hf_tensors(PARAMS)), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config == TINY
    assert model.tokenizer is None
    assert jax.tree.structure(model.params) == jax.tree.structure(PARAMS)
    assert bits(model.params) == bits(PARAMS)
    verify(tmp_path / "out")


def test_gguf_gives_the_same_tree(tmp_path: Path) -> None:
    params = sharp_params(11, PLAIN)
    to_jax(write_gguf(tmp_path / "in.gguf", PLAIN, params), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config == PLAIN
    assert bits(model.params) == bits(params)


def test_what_a_gguf_file_may_leave_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in llama.cpp: theta 10,000, as many key heads as query heads, heads that share D."""
    config = replace(PLAIN, n_kv_heads=PLAIN.n_heads, dim=PLAIN.n_heads * PLAIN.head_dim)
    for key in "head_count_kv rope_freq_base key_length value_length rope_dimension_count".split():
        monkeypatch.setattr(gguf.GGUFWriter, f"add_{key}", lambda *_: None)
    to_jax(write_gguf(tmp_path / "in.gguf", config, sharp_params(1, config)), tmp_path / "out")
    assert load(tmp_path / "out").config == config


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_gguf_scaling_is_recovered_from_its_divisors(tmp_path: Path, factor: float) -> None:
    scaling = RopeScaling(factor, 1.0, 4.0, 8192)
    config = replace(TINY, rope_theta=500000.0, rope_scaling=scaling)
    source = write_gguf(tmp_path / "in.gguf", config, PARAMS, divisors=divisors(config))
    to_jax(source, tmp_path / "out")
    assert load(tmp_path / "out").config == config
    source = write_gguf(tmp_path / "bad.gguf", config, PARAMS, divisors=divisors(config) * 1.01)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
        to_jax(source, tmp_path / "bad")


def test_quantised_gguf_is_dequantised_by_its_library(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    config = replace(PLAIN, dim=64, ffn_dim=96, head_dim=16, n_heads=6)
    params = sharp_params(1, config)
    to_jax(write_gguf(tmp_path / "in.gguf", config, params, kind=kind), tmp_path / "out")
    model = load(tmp_path / "out")
    up = np.asarray(params.layers[1].w_up)
    expected = gguf.dequantize(gguf.quantize(up, kind), kind)
    np.testing.assert_array_equal(model.params.layers[1].w_up, expected)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"float32"}


@pytest.mark.parametrize("given", ["absent", "equal"])
def test_tied_models_store_the_embedding_once(tmp_path: Path, given: str) -> None:
    config = replace(TINY, tie_embeddings=True)
    params = sharp_params(2, config)
    tensors = hf_tensors(params)
    if given == "equal":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    for name, tied in (("tied", True), ("untied", False)):
        if given == "absent" and not tied:
            continue
        source = write_folder(tmp_path / name, {**V4, "tie_word_embeddings": tied}, tensors)
        to_jax(source, tmp_path / f"{name}-out")
        model = load(tmp_path / f"{name}-out")
        assert model.params.output is None
        assert model.config == config
        assert bits(model.params) == bits(params)


def test_bfloat16_is_rounded_to_the_nearest_and_keep_keeps(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    to_jax(source, tmp_path / "bf16", dtype="bfloat16")
    half = load(tmp_path / "bf16").params
    for ours, theirs in zip(jax.tree.leaves(half), jax.tree.leaves(PARAMS), strict=True):
        expected = np.asarray(theirs).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(ours).view(np.int16), expected.view(np.int16))
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in hf_tensors(PARAMS).items()}
    to_jax(write_folder(tmp_path / "in16", V4, tensors), tmp_path / "kept")
    assert bits(load(tmp_path / "kept").params) == bits(half)
    assert bits(load(tmp_path / "bf16", dtype=jnp.float32).params) == bits(
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    )


REFUSED_CONFIGS = {
    "unknown key": ({"rope_magic": 1}, "rope_magic"),
    "model_type": ({"model_type": "qwen2", "rope_magic": 1}, "^model_type 'qwen2' is not"),
    "activation": ({"hidden_act": "gelu"}, "gelu"),
    "bias": ({"attention_bias": True}, "attention_bias"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    "old linear": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    "rope key": ({"rope_scaling": {**V4["rope_scaling"], "beta": 1}}, "beta"),
    "rope lacks": ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
    "two thetas": (
        {"rope_parameters": V5["rope_parameters"], "rope_scaling": None, "rope_theta": 5e5},
        "twice",
    ),
    "vocabulary": ({"vocab_size": -1}, "vocab_size"),
    "heads": ({"num_attention_heads": 7}, "num_attention_heads 7 .*num_key_value_heads 2"),
    "type": ({"hidden_size": "48"}, "hidden_size must be a positive integer, not '48'"),
    "eps": ({"rms_norm_eps": 0.0}, "rms_norm_eps must be"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "no type": (
        {"rope_scaling": {k: v for k, v in V4["rope_scaling"].items() if k != "rope_type"}},
        "without a type",
    ),
    "default that scales": (
        {"rope_scaling": {"rope_type": "default", "factor": 8.0}},
        "without a type",
    ),
    "two types": ({"rope_scaling": {"rope_type": "default", "type": "llama3"}}, "contradict"),
    "scaling is no object": ({"rope_scaling": 0}, "no object"),
    "theta true": ({"rope_theta": True}, "rope_theta"),
    "theta text": ({"rope_theta": "10000"}, "rope_theta"),
    "huge": ({"rms_norm_eps": 10**400}, "wrong type"),
}


@pytest.mark.parametrize(
    ("change", "message"), REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS.keys()
)
def test_configs_that_are_not_understood_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config({**V4, **change})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "model_type", "intermediate_size"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        parse_config({name: value for name, value in V4.items() if name != key})


def broken(name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    tensors = hf_tensors(PARAMS)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


NAN = np.full((88, 48), np.nan, np.float32)
BIG = np.full((88, 48), 1e6, np.float32)
UP = "model.layers.1.mlp.up_proj.weight"
REFUSED_TENSORS = {
    "missing": (broken(UP, None), "keep", UP),
    "extra": (broken("model.layers.2.mlp.up_proj.weight", BIG), "keep", "layers.2"),
    "shape": (broken(UP, BIG.T.copy()), "keep", UP),
    "nan": (broken(UP, NAN), "keep", "w_up holds NaN"),
    "infinity": (broken(UP, NAN * 0 + np.inf), "bfloat16", "w_up holds NaN or infinity"),
    "overflow": (broken(UP, BIG), "float16", "w_up overflows float16"),
    "float64": (broken(UP, BIG.astype(np.float64)), "keep", "F64"),
    "untied while tied": (None, "keep", "differs"),
}


@pytest.mark.parametrize(
    ("tensors", "dtype", "message"), REFUSED_TENSORS.values(), ids=REFUSED_TENSORS.keys()
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_left(
    tmp_path: Path, tensors: dict | None, dtype: str, message: str
) -> None:
    config = V4 if tensors else {**V4, "tie_word_embeddings": True}
    source = write_folder(tmp_path / "in", config, tensors or hf_tensors(PARAMS))
    with pytest.raises(ValueError, match=message):
        to_jax(source, tmp_path / "out", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_converted_model_is_not_converted_again(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    to_jax(str(source), str(tmp_path / "out"))  # names will do for paths
    with pytest.raises(ValueError, match="is a converted model already"):
        to_jax(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("shape", [(0, 48), (101, 0)])
def test_tensors_without_numbers_are_refused(tmp_path: Path, shape: tuple) -> None:
    tensors = hf_tensors(PARAMS)
    empty = np.zeros(shape, np.float32)
    tensors |= {"model.embed_tokens.weight": empty, "lm_head.weight": empty}
    with pytest.raises(ValueError, match=r"embed_tokens\.weight has shape"):
        to_jax(write_folder(tmp_path / "in", V4, tensors), tmp_path / "out")


def test_all_errors_come_in_one_report(tmp_path: Path) -> None:
    tensors = broken(UP, None)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    tensors["stray"] = tensors["model.norm.weight"]
    with pytest.raises(ValueError, match=r"is missing; ") as caught:
        to_jax(write_folder(tmp_path / "in", V4, tensors), tmp_path / "out")
    for part in (UP, "model.norm.weight has shape [47]", "stray has no place"):
        assert part in str(caught.value)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    source = write_sharded(tmp_path / "in", V4, hf_tensors(PARAMS))
    index = source / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for file in ("../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "", 3):
        places = dict.fromkeys(good["weight_map"], file)
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ValueError, match="plain file name"):
            to_jax(source, tmp_path / "out")
    index.write_text(json.dumps(good))
    shard = source / "model-00001-of-00003.safetensors"
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="leaves its folder"):
        to_jax(source, tmp_path / "out")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00003"):
        to_jax(source, tmp_path / "out")


def test_a_hub_cache_with_links_to_its_blobs_converts(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    write_folder(snapshot, V4, hf_tensors(PARAMS))
    for index, path in enumerate(list(snapshot.iterdir())):
        path.rename(blobs / str(index))
        path.symlink_to(os.path.relpath(blobs / str(index), snapshot))
    to_jax(snapshot, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)


def test_duplicate_keys_and_lying_counts_are_refused_at_once(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    text = json.dumps(V4)
    (source / "config.json").write_text(text.replace("{", '{"rope_theta": 7.0, ', 1))
    with pytest.raises(ValueError, match="'rope_theta' stands twice"):
        to_jax(source, tmp_path / "out")
    (source / "config.json").write_text(json.dumps({**V4, "num_hidden_layers": 10**9}))
    with pytest.raises(ValueError, match="1000000000 layers, the files hold 21 tensors"):
        to_jax(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.gguf", "model-2.safetensors"])
def test_a_second_format_or_stray_shard_is_refused(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / name).write_bytes(b"")
    with pytest.raises(ValueError, match=name):
        to_jax(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["link out", "dangling", "directory", "fifo"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    path = source / name
    path.unlink(missing_ok=True)
    if kind == "link out":
        (tmp_path / "secret").write_text(json.dumps(V4))
        path.symlink_to(tmp_path / "secret")
    elif kind == "dangling":
        path.symlink_to(source / "nowhere")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(ValueError, match=r"plain file|leaves its folder|no config\.json"):
        to_jax(source, tmp_path / "out")


def lie(data: bytes, name: bytes, form: str, value: int, skip: int) -> bytes:
    """The file with one number replaced, `skip` bytes after a name."""
    at = data.index(name) + len(name) + skip
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


UP_GGUF = b"blk.0.ffn_up.weight"  # then: dimensions <I, two sizes <Q, type <I, offset <Q
GGUF_LIES = {
    "magic": lambda data: b"GGML" + data[4:],
    "version": lambda data: data[:4] + struct.pack("<I", 9) + data[8:],
    "tensors": lambda data: data[:8] + struct.pack("<Q", 2**62) + data[16:],
    "fields": lambda data: data[:16] + struct.pack("<Q", 2**62) + data[24:],
    "string": lambda data: lie(data, b"general.architecture", "<Q", 2**63, 4),
    "field type": lambda data: lie(data, b"llama.block_count", "<I", 77, 0),
    "array": lambda data: lie(data, b"llama.block_count", "<I", 9, 0),
    "layers": lambda data: lie(data, b"llama.block_count", "<I", 10**7, 4),
    "dimensions": lambda data: lie(data, UP_GGUF, "<I", 99, 0),
    "shape": lambda data: lie(data, UP_GGUF, "<Q", 2**61, 4),
    "type": lambda data: lie(data, UP_GGUF, "<I", 250, 20),
    "offset": lambda data: lie(data, UP_GGUF, "<Q", 2**63, 24),
    "overlap": lambda data: lie(data, UP_GGUF, "<Q", 0, 24),
    "truncated": lambda data: data[:-100],
    "half": lambda data: data[: len(data) // 2],
    "trailing": lambda data: data + bytes(100),
}


@pytest.mark.parametrize("change", GGUF_LIES.values(), ids=GGUF_LIES.keys())
def test_a_gguf_file_that_lies_is_refused(tmp_path: Path, change: Callable) -> None:
    path = write_gguf(tmp_path / "in.gguf", PLAIN, sharp_params(11, PLAIN))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"in\.gguf|10000000 layers"):
        to_jax(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.parametrize(
    "data", [b"", b"1234567", b"\xff" * 64, b"<!doctype html>", b"\x1f\x8b" * 9]
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_files_that_are_something_else_are_refused(tmp_path: Path, data: bytes, name: str) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / name).write_bytes(data)
    path = source / name if name.endswith("gguf") else source
    with pytest.raises(ValueError, match=name):
        to_jax(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_goes_along_and_one_that_is_too_large_is_refused(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=300)
    params = sharp_params(1, config)
    source = write_folder(tmp_path / "in", {**V4, "vocab_size": 300}, hf_tensors(params))
    (source / "tokenizer.json").write_bytes(sentencepiece_like())
    settings = {"eos_token": "<end>", "chat_template": "{{ messages[0].content }}<end>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [260, 5]}))
    to_jax(source, tmp_path / "out")
    tokenizer = load(tmp_path / "out").tokenizer
    assert tokenizer.stop_ids == (260, 5)
    assert tokenizer.eos_id == 260
    assert not tokenizer.add_bos
    assert tokenizer.chat_template == settings["chat_template"]
    small = write_folder(tmp_path / "small", V4, hf_tensors(PARAMS))
    (small / "tokenizer.json").write_bytes(sentencepiece_like())
    with pytest.raises(ValueError, match="260 tokens, the embedding only 101"):
        to_jax(small, tmp_path / "small-out")
    assert generation() != b""


def test_metas_tokenizer_in_a_hugging_face_folder_goes_along(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=600)
    tensors = hf_tensors(sharp_params(1, config))
    source = write_folder(tmp_path / "in", {**V4, "vocab_size": 600}, tensors)
    (source / "tokenizer.model").write_bytes(rank_file())
    to_jax(source, tmp_path / "out")
    assert load(tmp_path / "out").tokenizer.encode("hello", bos=True) == [263, 259]
    (source / "tokenizer.model").unlink()
    to_jax(source, tmp_path / "other")
    assert load(tmp_path / "other").tokenizer is None
    decisions = read_manifest(tmp_path / "other")["decisions"]
    assert any(text.startswith("note: the source has no tokenizer") for text in decisions)


def test_the_output_is_never_the_source_nor_lost(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    for output in (source, source / "deeper"):
        with pytest.raises((ValueError, FileExistsError)):
            to_jax(source, output)
    foreign = tmp_path / "foreign"
    to_jax(source, foreign)
    (foreign / "thesis.txt").write_text("precious")
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "a web page"}')
    for output in (foreign, web):
        for overwrite in (False, True):
            with pytest.raises(FileExistsError):
                to_jax(source, output, overwrite=overwrite)
    assert (foreign / "thesis.txt").read_text() == "precious"
    inner = write_folder(foreign / "deep", V4, hf_tensors(PARAMS))
    with pytest.raises((ValueError, FileExistsError)):
        to_jax(inner, foreign, overwrite=True)
    to_jax(source, tmp_path / "out")
    with pytest.raises(FileExistsError, match="overwrite"):
        to_jax(source, tmp_path / "out")
    to_jax(source, tmp_path / "out", dtype="bfloat16", overwrite=True)
    assert load(tmp_path / "out").params.norm.dtype == jnp.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "in", "out", "web"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_follow_the_umask(tmp_path: Path, mask: int) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    old = os.umask(mask)
    try:
        to_jax(source, tmp_path / "ein Ort mit ü")
    finally:
        os.umask(old)
    for path in (tmp_path / "ein Ort mit ü").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    dead = tmp_path / f".out{PARTIAL}"
    dead.mkdir()
    (dead / "weights").write_bytes(b"half")
    (dead / "deeper").mkdir()
    to_jax(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    verify(tmp_path / "out")


def test_a_run_killed_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    to_jax(source, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / f".out{OLD}")
    with pytest.raises(FileExistsError, match="overwrite"):
        to_jax(source, tmp_path / "out")
    verify(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_failing_rename_puts_the_old_model_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    to_jax(source, tmp_path / "out")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(PARTIAL):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        to_jax(source, tmp_path / "out", dtype="bfloat16", overwrite=True)
    assert load(tmp_path / "out").params.norm.dtype == jnp.float32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_scaling_of_a_v5_file_is_read() -> None:
    assert parse_config(V5).rope_scaling == LLAMA_3_1
    assert parse_config(V5) == parse_config(V4) == TINY


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 2),
        (["to-jax"], 2),
        (["to-jax", "/nowhere", "out"], 1),
        (["fetch", "no-such-model"], 1),
        (["check", "/nowhere"], 1),
        (["to-jax", "a", "b", "--dtype", "int3"], 2),
    ],
)
def test_every_failure_is_one_line(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture
) -> None:
    assert run(main, arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_the_command_converts_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    out = str(tmp_path / "out")
    assert main(["to-jax", str(source), out]) == 0
    assert main(["check", out]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == out
    assert "21 tensors" in captured.out
    note = "note: the source has no tokenizer; the model takes and gives token ids only\n"
    assert captured.err == note


def test_the_axes_that_a_product_sums_over_stand_last() -> None:
    assert {name: contracted_axes(f"layers.3.{name}") for name in ("wo", "wq", "ffn_norm")} == {
        "wo": 2,
        "wq": 1,
        "ffn_norm": 0,
    }
    for name, leaf in named_leaves(abstract_params(TINY, np.float32)):
        assert len(AXES[name.rpartition(".")[2]]) == len(leaf.shape), name
        outer = leaf.shape[: len(leaf.shape) - contracted_axes(name)]
        assert math.prod(flat_shape(name, leaf.shape)) == math.prod(leaf.shape)
        assert len(leaf.shape) == 1 or flat_shape(name, leaf.shape)[0] == math.prod(outer)


def test_the_chat_format_is_chosen_at_conversion_and_kept() -> None:
    texts = {MODEL: rank_file()}
    kept, (decision,) = choose_chat_format(texts, None)
    assert kept == texts
    assert decision.startswith("note: no chat template, so prompts are raw text; for an Instruct")
    chosen, (decision,) = choose_chat_format(texts, "llama3")
    assert decision == "note: prompts are in the chat format llama3"
    raw, chat = tokenizer_from_files(texts), tokenizer_from_files(chosen)
    assert (chat.chat_format, raw.chat_format) == ("llama3", None)
    assert (chat.bos_id, chat.stop_ids, chat.add_bos) == (raw.bos_id, raw.stop_ids, raw.add_bos)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "no vocabulary of Llama 3's"),
        ({JSON: sentencepiece_like(), GENERATION: generation()}, "no vocabulary of Llama 3's"),
        ({MODEL: rank_file(), TEMPLATE: b"{{ 1 }}"}, "a chat template of its own"),
    ],
)
def test_a_chat_format_that_does_not_fit_is_refused(texts: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose_chat_format(texts, "llama3")


def test_named_templates_and_special_tokens_are_kept(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(sentencepiece_like())
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    settings = {"eos_token": {"content": "<end>"}, "pad_token": "<end>", "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<unk>"}))
    texts, paths, _ = huggingface_texts(tmp_path, {})
    tokenizer = tokenizer_from_files(texts)
    special = {"eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>"}
    assert tokenizer.special_tokens == special
    assert (tokenizer.chat_template, tokenizer.chat_templates) == ("a", {"tool_use": "b"})
    others = tmp_path / "additional_chat_templates"
    others.mkdir()
    (others / "rag.jinja").write_text("c")
    texts, paths, _ = huggingface_texts(tmp_path, {})
    assert tokenizer_from_files(texts).chat_templates == {"rag": "c"}
    assert others / "rag.jinja" in paths
