"""GGUF as llama.cpp has it: written, read back to the bit, in several parts, and what it is not."""

import importlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoints import bits, hf_tensors, interleaved, write_gguf
from disks import full_from
from divergence import divergence, jitted, texts
from random_models import TINY, replace, sharp_params
from tokenizer_files import RANKS, generation, rank_file, sentencepiece_like
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from convert.__main__ import main
from convert.fetch.models import fetch
from convert.formats.gguf.header import read_header
from convert.to_gguf import to_gguf
from convert.to_jax import to_jax
from jax_llama3 import Config, Model, RopeScaling, generate, load, save
from jax_llama3.checkpoint.receipt import receipt_path
from jax_llama3.checkpoint.verification import verify
from jax_llama3.text.tokenizer import GENERATION, JSON, MODEL, TEMPLATE, tokenizer_from_files
from jax_llama3.text.vocabulary import byte_level

# q8_0 takes rows of a multiple of 32.
SMALL = replace(TINY, dim=64, n_heads=4, n_kv_heads=2, ffn_dim=96, rope_scaling=None)
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def saved(
    folder: Path, config: Config = SMALL, dtype: Any = np.float32, files: dict | None = None
) -> Path:
    """A converted model of random weights."""
    params = sharp_params(3, config)
    tree = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype)), params)
    save(folder, Model(config, tree, tokenizer_from_files(files or {})))
    return folder


def bpe_json(*, ignore_merges: bool = True, pre: Any = None, normalizer: Any = None) -> bytes:
    """Llama 3's kind of tokenizer.json: every byte, three merges and two special tokens."""
    pieces = [*byte_level(), "he", "ll", "hell"]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[("h", "e"), ("l", "l"), ("he", "ll")],
        ignore_merges=ignore_merges,
    )
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre or split
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["<|begin|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer.to_str().encode()


# --- the numbers ---


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, stored: str, tied: bool) -> None:
    config = replace(SMALL, tie_embeddings=tied)
    saved(tmp_path / "jax", config, DTYPES[stored])
    to_gguf(tmp_path / "jax", tmp_path / "model.gguf")
    to_jax(tmp_path / "model.gguf", tmp_path / "kept")
    to_jax(tmp_path / "model.gguf", tmp_path / "again", dtype=np.dtype(DTYPES[stored]).name)
    first, kept, again = (load(tmp_path / name) for name in ("jax", "kept", "again"))
    assert again.config == kept.config == config
    assert bits(again.params) == bits(first.params)
    # A norm is float32 in the file, whatever the matrices are.
    assert kept.params.norm.dtype == jnp.float32
    assert kept.params.layers[1].wq.dtype == DTYPES[stored]


@pytest.mark.parametrize("written", DTYPES)
def test_another_dtype_is_what_to_jax_makes_of_it(tmp_path: Path, written: str) -> None:
    saved(tmp_path / "jax")
    to_gguf(tmp_path / "jax", tmp_path / "model.gguf", dtype=written)
    to_jax(tmp_path / "model.gguf", tmp_path / "again")
    source, found = load(tmp_path / "jax").params, load(tmp_path / "again").params
    assert np.array_equal(found.norm, source.norm)
    for name in ("wq", "wo", "w_down"):
        expected = np.asarray(getattr(source.layers[1], name)).astype(DTYPES[written])
        assert np.asarray(getattr(found.layers[1], name)).tobytes() == expected.tobytes(), name


def test_a_gguf_file_comes_back_as_it_was(tmp_path: Path) -> None:
    """Fields and bytes of every tensor, after a way through our own format."""
    files = {JSON: bpe_json(ignore_merges=False), GENERATION: generation(eos_id=260)}
    saved(tmp_path / "jax", replace(SMALL, vocab_size=262), np.float16, files)
    to_gguf(tmp_path / "jax", tmp_path / "model.gguf")
    to_jax(tmp_path / "model.gguf", tmp_path / "again")
    (tmp_path / "again").rename(tmp_path / "other")
    (tmp_path / "jax").rename(tmp_path / "first")
    (tmp_path / "other").rename(tmp_path / "jax")  # the file holds the folder's name
    to_gguf(tmp_path / "jax", tmp_path / "second.gguf")
    assert (tmp_path / "second.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


def test_q8_0_is_what_the_gguf_library_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.table.BLOCK_BYTES", 8000)  # several blocks for each matrix
    saved(tmp_path / "jax", SMALL, ml_dtypes.bfloat16)
    to_gguf(tmp_path / "jax", tmp_path / "model.gguf", dtype="q8_0")
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    tensors = hf_tensors(load(tmp_path / "jax").params)
    wide = tensors["model.layers.1.self_attn.q_proj.weight"].astype(np.float32)
    for name, values in (
        ("blk.1.attn_q.weight", interleaved(wide, 4)),
        ("token_embd.weight", tensors["model.embed_tokens.weight"].astype(np.float32)),
    ):
        expected = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        assert found[name].tensor_type.name == "Q8_0"
        assert np.array_equal(found[name].data, expected), name
    norm = tensors["model.norm.weight"].astype(np.float32)
    assert np.array_equal(found["output_norm.weight"].data, norm)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_rope_is_a_tensor(tmp_path: Path, factor: float) -> None:
    config = replace(SMALL, rope_scaling=RopeScaling(factor, 1.0, 4.0, 8192), rope_theta=500000.0)
    saved(tmp_path / "jax", config)
    to_gguf(tmp_path / "jax", tmp_path / "model.gguf")
    to_jax(tmp_path / "model.gguf", tmp_path / "again")
    assert load(tmp_path / "again").config == config
    (divisors,) = [
        t.data
        for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors
        if t.name == "rope_freqs.weight"
    ]
    assert divisors.dtype == np.float32
    assert (divisors.shape, divisors[0], divisors[-1]) == ((8,), 1, factor)


# --- the fields ---


def test_every_field_that_llama_cpp_reads_is_there(tmp_path: Path) -> None:
    files = {
        JSON: bpe_json(ignore_merges=False),
        GENERATION: generation(bos_id=259, eos_id=260, stop_ids=[260, 261], add_bos=True),
        TEMPLATE: b"{{ messages[0].content }}",
    }
    saved(tmp_path / "tiny", replace(SMALL, vocab_size=264), np.float16, files)
    to_gguf(tmp_path / "tiny", tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    found = {key: field.contents() for key, field in fields.items()}
    tokens = found.pop("tokenizer.ggml.tokens")
    kinds = found.pop("tokenizer.ggml.token_type")
    assert tokens[256:] == ["he", "ll", "hell", "<|begin|>", "<|im_end|>", "<tool>", *tokens[262:]]
    assert tokens[262:] == ["[PAD262]", "[PAD263]"]
    assert kinds == [1] * 259 + [3, 3, 4, 5, 5]
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.vocab_size": 264,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
        "tokenizer.ggml.bos_token_id": 259,
        "tokenizer.ggml.eos_token_id": 260,
        "tokenizer.ggml.eot_token_id": 261,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    assert {key: value for key, value in found.items() if key[:5] != "GGUF."} == expected


def test_metas_tokenizer_becomes_a_vocabulary_with_the_same_ids(tmp_path: Path) -> None:
    size = len(RANKS) + 256
    files = {MODEL: rank_file(RANKS)}
    saved(tmp_path / "jax", replace(SMALL, vocab_size=size + 3), files=files)
    to_gguf(tmp_path / "jax", tmp_path / "model.gguf")
    assert read_header(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"] == "llama-bpe"
    to_jax(tmp_path / "model.gguf", tmp_path / "again")
    ours, again = (load(tmp_path / name).tokenizer for name in ("jax", "again"))
    for text in ("hello hello", "  hell 1234567\n\n你好", "it's 🙂 <|eot_id|>", ""):
        assert again.encode(text, bos=True) == ours.encode(text, bos=True), text
    assert again.vocabulary.special == ours.vocabulary.special
    assert again.bos_id == ours.bos_id
    assert again.eos_id == ours.eos_id
    assert {*again.stop_ids} == {*ours.stop_ids}
    assert again.add_bos
    assert again.chat_template is ours.chat_template is None


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    saved(tmp_path / "jax")
    assert main(["to-gguf", str(tmp_path / "jax"), str(tmp_path / "model.gguf")]) == 0
    out, error = capfd.readouterr()
    assert out == f"{tmp_path / 'model.gguf'}\n"
    assert error == "note: the model has no tokenizer; llama.cpp will take token ids alone\n"
    to_jax(tmp_path / "model.gguf", tmp_path / "again")
    assert load(tmp_path / "again").tokenizer is None


def test_stop_ids_beyond_three_are_named(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    files = {
        JSON: bpe_json(ignore_merges=False),
        GENERATION: generation(eos_id=260, stop_ids=[261, 259, 260, 7]),
    }
    saved(tmp_path / "jax", replace(SMALL, vocab_size=262), files=files)
    assert main(["to-gguf", str(tmp_path / "jax"), str(tmp_path / "model.gguf")]) == 0
    assert capfd.readouterr().err == "note: GGUF names three stop ids; 7 are left out\n"


def with_flag(data: bytes, flag: str) -> bytes:
    values = json.loads(data)
    values["added_tokens"][0][flag] = True
    return json.dumps(values).encode()


UNSAYABLE: dict[str, tuple[bytes, str]] = {
    "SentencePiece's kind": (sentencepiece_like(), "not byte-level BPE .*use to-hf"),
    "a normalizer": (bpe_json(normalizer=normalizers.NFC()), "the tokenizer's normalizer NFC"),
    "another split": (
        bpe_json(pre=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "no name that is known here for the tokenizer's pre-tokenizer",
    ),
    "whole words with GPT-2's split": (bpe_json(), r"with ignore_merges True\)"),
    "a token that eats spaces": (
        with_flag(bpe_json(ignore_merges=False), "lstrip"),
        r"lstrip of the added token '<\|begin\|>'",
    ),
}


@pytest.mark.parametrize(("data", "message"), UNSAYABLE.values(), ids=UNSAYABLE.keys())
def test_a_tokenizer_that_gguf_cannot_hold_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    saved(tmp_path / "jax", replace(SMALL, vocab_size=300), files={JSON: data, GENERATION: STOPS})
    with pytest.raises(ValueError, match=message):
        to_gguf(tmp_path / "jax", tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


STOPS = generation()


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    files = {
        JSON: bpe_json(ignore_merges=False),
        GENERATION: generation(eos_id=None, stop_ids=[]),
    }
    saved(tmp_path / "jax", replace(SMALL, vocab_size=262), files=files)
    with pytest.raises(ValueError, match=r"llama\.cpp would take id 11 for it; set eos_token"):
        to_gguf(tmp_path / "jax", tmp_path / "model.gguf")


def test_what_the_format_cannot_say_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "jax", replace(SMALL, norm_eps=1.0000000001e-5, rope_theta=500000.01))
    with pytest.raises(ValueError, match=r"norm_eps as float32, .*; GGUF holds rope_theta"):
        to_gguf(tmp_path / "jax", tmp_path / "model.gguf")
    saved(tmp_path / "long", replace(SMALL, max_seq_len=2**33))
    with pytest.raises(ValueError, match="GGUF holds context_length in 32 bits, which cannot say"):
        to_gguf(tmp_path / "long", tmp_path / "model.gguf")
    saved(tmp_path / "odd", replace(SMALL, ffn_dim=88))
    with pytest.raises(ValueError, match=r"layers.0.w_down has rows of 88 numbers, and q8_0"):
        to_gguf(tmp_path / "odd", tmp_path / "model.gguf", dtype="q8_0")
    with pytest.raises(ValueError, match="dtype 'q4_0' is not supported, only f32, f16"):
        to_gguf(tmp_path / "odd", tmp_path / "model.gguf", dtype="q4_0")


def test_an_int8_model_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path / "plain")
    to_gguf(tmp_path / "plain", tmp_path / "model.gguf")
    to_jax(tmp_path / "model.gguf", tmp_path / "jax", quantize="int8")
    with pytest.raises(ValueError, match="jax is quantised; convert the source again without"):
        to_gguf(tmp_path / "jax", tmp_path / "other.gguf")


@pytest.mark.parametrize(("dtype", "value"), [("f16", 70000.0), ("q8_0", 1e7)])
def test_an_overflow_is_refused_and_leaves_nothing(
    tmp_path: Path, dtype: str, value: float
) -> None:
    params = sharp_params(1, SMALL)
    large = params._replace(embedding=params.embedding.at[5, 7].set(value))
    save(tmp_path / "jax", Model(SMALL, large, None))
    with pytest.raises(ValueError, match=r"tensor embedding overflows (float16|q8_0)"):
        to_gguf(tmp_path / "jax", tmp_path / "model.gguf", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


# --- the file on the disk ---


def test_the_receipt_notices_every_change(tmp_path: Path) -> None:
    saved(tmp_path / "jax")
    file = tmp_path / "model.gguf"
    to_gguf(tmp_path / "jax", file)
    receipt = verify(file)
    assert receipt["export"] == "gguf"
    assert set(receipt["source"]["files"]) == {"config.json", "weights-00001-of-00001.safetensors"}
    assert receipt["tensors"]["blk.0.attn_q.weight"]["shape"] == [64, 64]
    for path in (file, receipt_path(file)):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + b"#" + data[len(data) // 2 + 1 :])
        with pytest.raises(ValueError, match=r"model\.gguf"):
            verify(file)
        path.write_bytes(data)
    assert main(["check", str(file)]) == 0
    receipt_path(file).unlink()
    with pytest.raises(ValueError, match=r"has no receipt model\.gguf\.manifest\.json"):
        verify(file)


def test_only_a_file_with_our_receipt_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path / "jax")
    file = tmp_path / "model.gguf"
    write = partial(to_gguf, tmp_path / "jax", file)
    write()
    first = file.read_bytes()
    with pytest.raises(FileExistsError, match="exists already; choose another name or --overwrite"):
        write()
    write(dtype="f16", overwrite=True)
    assert len(file.read_bytes()) < len(first)
    file.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="has no such receipt, and is not replaced"):
        write(overwrite=True)
    file.unlink()
    write()  # a receipt without its file is ours
    assert file.read_bytes() == first
    receipt_path(file).write_text("{}")
    with pytest.raises(FileExistsError, match="not replaced"):
        write(overwrite=True)
    file.unlink()
    with pytest.raises(FileExistsError, match=r"is no receipt of model\.gguf; move it away"):
        write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jax", "model.gguf.manifest.json"]


def test_a_folder_or_a_place_inside_the_source_is_no_output(tmp_path: Path) -> None:
    saved(tmp_path / "jax")
    with pytest.raises(FileExistsError, match="is a folder; name the file"):
        to_gguf(tmp_path / "jax", tmp_path)
    with pytest.raises(ValueError, match="lie inside each other"):
        to_gguf(tmp_path / "jax", tmp_path / "jax" / "model.gguf")
    verify(tmp_path / "jax")


@pytest.mark.parametrize("call", [0, 1, 10])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, call: int
) -> None:
    saved(tmp_path / "jax")
    arguments = ["to-gguf", str(tmp_path / "jax"), str(tmp_path / "new" / "model.gguf")]
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full_from(call, os.pwrite))
        assert main(arguments) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]
    assert main(arguments) == 0


@pytest.mark.parametrize("renamed", [0, 1])
@pytest.mark.parametrize("before", [False, True])
def test_a_kill_between_the_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int, before: bool
) -> None:
    saved(tmp_path / "jax")
    file = tmp_path / "model.gguf"
    if before:
        to_gguf(tmp_path / "jax", file, dtype="f16")
        old = file.read_bytes()
    left = renamed

    def killed(path: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            raise SystemExit  # after which nothing of the run is tidied up
        left -= 1
        os.rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr("shutil.rmtree", lambda *args, **options: None)
        with pytest.raises(SystemExit):
            to_gguf(tmp_path / "jax", file, overwrite=before)
    if renamed == 0:
        assert file.exists() == before
        assert not before or file.read_bytes() == old
    else:
        with pytest.raises(ValueError, match=r"model\.gguf"):
            verify(file)
    to_gguf(tmp_path / "jax", file, overwrite=True)
    verify(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "jax",
        "model.gguf",
        "model.gguf.manifest.json",
    ]


# --- what people have ---


def write_parts(folder: Path, **split: int) -> list[Path]:
    """A model in several files, as the gguf library and llama.cpp split one."""
    folder.mkdir()
    write_gguf(folder / "model.gguf", SMALL, sharp_params(3, SMALL), **split)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("first_empty", [False, True])
def test_any_part_of_a_split_file_reads_all(tmp_path: Path, first_empty: bool) -> None:
    parts = write_parts(tmp_path / "in", split_max_tensors=8, small_first_shard=first_empty)
    assert [path.name for path in parts] == [
        f"model-{index:05}-of-{len(parts):05}.gguf" for index in range(1, len(parts) + 1)
    ]
    assert len(parts) == 3 + first_empty
    for index, path in enumerate(parts):
        to_jax(path, tmp_path / f"out{index}")
        model = load(tmp_path / f"out{index}")
        assert bits(model.params) == bits(sharp_params(3, SMALL))
        assert model.config == SMALL
    manifest = verify(tmp_path / "out0")
    assert {*manifest["source"]["files"]} == {path.name for path in parts}
    assert f"{len(parts)} parts joined" in manifest["decisions"]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "in", split_max_tensors=8)
    parts[1].unlink()
    for path in (parts[0], parts[2]):
        with pytest.raises(
            FileNotFoundError, match=r"model-00002-of-00003\.gguf is missing; model"
        ):
            to_jax(path, tmp_path / "out")


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "in", split_max_tensors=8)
    for name in ("mine.gguf", "model-00001-of-00003.gguf", "model-00002-of-00004.gguf"):
        path = parts[1].rename(tmp_path / name)
        with pytest.raises(ValueError, match=r"not end in -00002-of-00003\.gguf; give it its name"):
            to_jax(path, tmp_path / "out")
        path.rename(parts[1])
    # Both in place of each other: each has the other's number.
    parts[1].rename(tmp_path / "x")
    parts[2].rename(parts[1])
    (tmp_path / "x").rename(parts[2])
    with pytest.raises(ValueError, match=r"split\.no is 2, not 1; is it a part of another model"):
        to_jax(parts[0], tmp_path / "out")


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "in", split_max_tensors=8)
    other = tmp_path / "other"
    other.mkdir()
    larger = replace(SMALL, n_layers=1, tie_embeddings=True)
    write_gguf(other / "model.gguf", larger, sharp_params(3, larger), split_max_tensors=4)
    data = parts[1].read_bytes()
    parts[1].write_bytes((other / parts[1].name).read_bytes())
    with pytest.raises(ValueError, match=r"split\.tensors\.count is 11, not 21; is it a part of"):
        to_jax(parts[0], tmp_path / "out")
    # The same number of tensors, of which some are in two parts.
    fewer = write_parts(tmp_path / "again", split_max_tensors=9)
    parts[1].write_bytes(fewer[1].read_bytes())
    with pytest.raises(
        ValueError, match=r"00003-of-00003\.gguf: blk\..* is in model-00002-of-00003"
    ):
        to_jax(parts[0], tmp_path / "out")
    parts[1].write_bytes(data)
    parts[2].write_bytes(fewer[2].read_bytes())
    with pytest.raises(
        ValueError, match=r"3 parts hold 19 tensors, and split\.tensors\.count is 21"
    ):
        to_jax(parts[0], tmp_path / "out")


# --- other programs ---


@pytest.mark.reference
def test_transformers_reads_what_is_written(tmp_path: Path) -> None:
    import transformers
    from transformers_reference import state_dict, torch, transformers_logits

    files = {JSON: bpe_json(ignore_merges=False), GENERATION: generation(eos_id=260)}
    saved(tmp_path / "jax", replace(SMALL, vocab_size=262), files=files)
    to_gguf(tmp_path / "jax", tmp_path / "model.gguf")
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="model.gguf",
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()
    model = load(tmp_path / "jax")
    found = theirs.state_dict()
    for name, tensor in state_dict(model.params).items():
        assert torch.equal(tensor.reshape(found[name].shape), found[name]), name
    tokens = np.random.default_rng(0).integers(0, 262, (2, 40))
    logits, _ = jitted(model.params, jnp.asarray(tokens), model.config)
    np.testing.assert_allclose(
        transformers_logits(theirs, tokens), np.asarray(logits), rtol=0, atol=1e-4
    )


@pytest.mark.real
@pytest.mark.slow
def test_q8_0_of_the_default_model_is_near_to_float32(
    tmp_path: Path, default_model: Model, record_property: Callable[[str, object], None]
) -> None:
    to_gguf(fetch("smollm2-135m-instruct"), tmp_path / "model.gguf", dtype="q8_0")
    to_jax(tmp_path / "model.gguf", tmp_path / "again")
    other = load(tmp_path / "again")
    assert other.config == default_model.config
    found = []
    for batch in texts(default_model):
        logits = [jitted(m.params, jnp.asarray(batch), m.config)[0] for m in (default_model, other)]
        found.append(divergence(*map(np.asarray, logits)))
    record_property("KL of q8_0 to float32", float(np.mean(found)))
    assert 0 < np.mean(found) < 0.005


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "lead"), [("f32", 0.0), ("bf16", 0.1)])
def test_llama_cpp_chooses_the_same_ids(
    tmp_path: Path, default_model: Model, dtype: str, lead: float
) -> None:
    """In bf16 llama.cpp rounds what it multiplies, too: of two tokens that are nearly as likely, either.

    `lead` is by how much our logit of our token may exceed that of its own where they part.
    """
    pytest.importorskip("llama_cpp")
    llama_cpp: Any = importlib.import_module("llama_cpp")
    to_gguf(fetch("smollm2-135m-instruct"), tmp_path / "model.gguf", dtype=dtype)
    to_jax(tmp_path / "model.gguf", tmp_path / "again")
    model = load(tmp_path / "again", dtype="float32")
    theirs = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=256, verbose=False, seed=0)
    words = texts(default_model).reshape(-1, 64)[:20, :24]
    equal = 0
    for ids in words:
        text = default_model.tokenizer.decode(ids.tolist())
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == (
            default_model.tokenizer.encode(text)
        )
        theirs.reset()
        stream = theirs.generate(ids.tolist(), temp=0.0, repeat_penalty=1.0)
        found = [token for token, _ in zip(stream, range(16), strict=False)]
        ours = list(generate(model, ids.tolist(), max_new_tokens=16).tokens)
        same = [a == b for a, b in zip(found, ours, strict=False)]
        equal += all(same)
        if not all(same):
            place = same.index(False)
            before = jnp.array([[*ids.tolist(), *ours[:place]]])
            logits = jitted(model.params, before, model.config)[0][0, -1]
            assert logits[ours[place]] - logits[found[place]] < lead, text
    assert equal == len(words) if lead == 0 else equal >= 16
