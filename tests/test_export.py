"""Back to Hugging Face's and Meta's formats: the source's tensors, and the source's logits."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from checkpoints import (
    META,
    META_PARAMS,
    V4,
    bits,
    hf_tensors,
    meta_shards,
    write_folder,
    write_gguf,
    write_meta,
)
from random_models import TINY, replace, sharp_params
from test_durability import full_from
from test_tokenizer import rank_file, sentencepiece_like
from transformers_reference import transformers_logits

from convert.export import to_hf, to_meta
from convert.to_jax import to_jax
from jax_llama3 import Config, Model, Params, apply_chat_template, forward, load, save
from jax_llama3.checkpoint.verification import verify
from jax_llama3.text.tokenizer import MODEL, tokenizer_from_files

TOKENS = np.random.default_rng(0).integers(0, 101, (2, 90))


def logits(params: Params, config: Config) -> np.ndarray:
    return np.asarray(forward(params, jnp.asarray(TOKENS), config)[0])


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_to_hf_gives_back_the_source_bit_for_bit(tmp_path: Path, dtype: type) -> None:
    tensors = {
        name: array.astype(dtype) for name, array in hf_tensors(sharp_params(1, TINY)).items()
    }
    source = write_folder(tmp_path / "in", V4, tensors)
    to_jax(source, tmp_path / "jax")
    to_hf(tmp_path / "jax", tmp_path / "hf")
    assert_same(stored(tmp_path / "hf"), stored_without_metadata(source))
    to_jax(tmp_path / "hf", tmp_path / "again")
    assert load(tmp_path / "again").config == load(tmp_path / "jax").config
    verify(tmp_path / "hf")


def stored_without_metadata(folder: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_mixed_dtypes_are_kept(tmp_path: Path) -> None:
    tensors = {
        name: array if array.ndim == 1 else array.astype(ml_dtypes.bfloat16)
        for name, array in hf_tensors(sharp_params(1, TINY)).items()
    }
    source = write_folder(tmp_path / "in", V4, tensors)
    to_jax(source, tmp_path / "jax")
    to_hf(tmp_path / "jax", tmp_path / "hf")
    assert_same(stored(tmp_path / "hf"), stored_without_metadata(source))


CONFIGS = {
    "grouped, scaled": TINY,
    "one head of keys": replace(TINY, n_kv_heads=1, rope_scaling=None, norm_eps=1e-6),
    "tied": replace(TINY, tie_embeddings=True),
    "odd sizes": replace(TINY, dim=42, n_heads=3, n_kv_heads=3, head_dim=10, ffn_dim=33),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_loads_what_to_hf_writes(
    tmp_path: Path, config: Config, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    params = sharp_params(2, config)
    save(tmp_path / "jax", Model(config, params, None))
    if sharded:
        monkeypatch.setattr("jax_llama3.checkpoint.shards._SMALLEST", 60_000)
    to_hf(tmp_path / "jax", tmp_path / "hf")
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == sharded
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, local_files_only=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    expected = logits(params, config)
    assert expected.std() > 0.04
    np.testing.assert_allclose(
        transformers_logits(model.eval(), TOKENS), expected, rtol=0, atol=1e-4
    )


def meta_logits(folder: Path, world: int, work: Path) -> np.ndarray:
    work.mkdir()
    np.save(work / "tokens.npy", TOKENS)
    program = Path(__file__).parent / "meta_reference.py"
    arguments = [str(work / name) for name in ("store", "tokens.npy", "logits.npy")]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(folder), str(rank), str(world), *arguments],
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]
    for rank in ranks:
        _, error = rank.communicate()
        assert rank.returncode == 0, error.decode()[-2000:]
    return np.load(work / "logits.npy")


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_metas_own_model_loads_what_to_meta_writes(tmp_path: Path, world: int, tied: bool) -> None:
    config = replace(META, tie_embeddings=tied)
    params = sharp_params(3, config)
    save(tmp_path / "jax", Model(config, params, None))
    to_meta(tmp_path / "jax", tmp_path / "meta", shards=world)
    expected = logits(params, config)
    assert expected.std() > 0.04
    found = meta_logits(tmp_path / "meta", world, tmp_path / "work")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_meta_gives_back_the_source_bit_for_bit(
    tmp_path: Path, shards: int, dtype: torch.dtype
) -> None:
    params = sharp_params(4, META)
    source = write_meta(tmp_path / "in", params, shards=2, dtype=dtype)
    to_jax(source, tmp_path / "jax")
    to_meta(tmp_path / "jax", tmp_path / "meta", shards=shards)
    expected = meta_shards(params, META, shards)
    for rank in range(shards):
        path = tmp_path / "meta" / f"consolidated.{rank:02}.pth"
        for mmap in (False, True):
            found = torch.load(path, weights_only=True, mmap=mmap)
            assert_same(found, {name: t.to(dtype) for name, t in expected[rank].items()})
        for tensor in found.values():
            assert tensor.data_ptr() % 64 == found["norm.weight"].data_ptr() % 64
    lines = (tmp_path / "meta" / "checklist.chk").read_text().splitlines()
    assert len(lines) == shards
    verify(tmp_path / "meta")
    to_jax(tmp_path / "meta", tmp_path / "again")
    assert bits(load(tmp_path / "again").params) == bits(load(tmp_path / "jax").params)
    assert load(tmp_path / "again").config == META


def test_large_records_are_written_in_64_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = sharp_params(4, META)
    save(tmp_path / "jax", Model(META, params, None))
    monkeypatch.setattr("convert.formats.meta.pth_writer._LARGE", 5000)
    to_meta(tmp_path / "jax", tmp_path / "meta")
    found = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True, mmap=True)
    assert_same(found, meta_shards(params, META, 1)[0])
    to_jax(tmp_path / "meta", tmp_path / "again")
    assert bits(load(tmp_path / "again").params) == bits(params)


@pytest.mark.parametrize("call", [0, 3, 40])
def test_a_full_disk_while_meta_shards_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, call: int
) -> None:
    from convert.__main__ import main

    save(tmp_path / "jax", Model(META, sharp_params(1, META), None))
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full_from(call, os.pwrite))
        assert main(["to-meta", str(tmp_path / "jax"), str(tmp_path / "meta")]) == 1
    gc.collect()
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


REFUSED = {
    "head_dim": (replace(META, head_dim=8), 1, "knows no head_dim 8"),
    "scaling": (replace(META, rope_scaling=TINY.rope_scaling), 1, "cannot say RopeScaling"),
    "shards of heads": (META, 8, "n_heads 4 is not a multiple of 8 shards"),
    "no shards": (META, 0, "--shards 0 is not between"),
    "shards of the vocabulary": (replace(META, vocab_size=103), 2, "vocab_size 103 is not"),
}


@pytest.mark.parametrize(("config", "shards", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_metas_format_cannot_say_is_refused(
    tmp_path: Path, config: Config, shards: int, message: str
) -> None:
    save(tmp_path / "jax", Model(config, sharp_params(1, config), None))
    with pytest.raises(ValueError, match=message):
        to_meta(tmp_path / "jax", tmp_path / "meta", shards=shards)
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


def test_only_a_sound_model_is_exported(tmp_path: Path) -> None:
    save(tmp_path / "jax", Model(META, sharp_params(1, META), None))
    (shard,) = (tmp_path / "jax").glob("weights-*")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for export in (to_hf, to_meta):
        with pytest.raises(ValueError, match=r"safetensors is damaged: its sha256"):
            export(tmp_path / "jax", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


def test_exports_are_checked_but_not_loaded(tmp_path: Path) -> None:
    save(tmp_path / "jax", Model(META, sharp_params(1, META), None))
    for export, name in ((to_hf, "huggingface"), (to_meta, "meta")):
        folder = tmp_path / name
        export(tmp_path / "jax", folder)
        with pytest.raises(ValueError, match=f"is in the {name} format"):
            load(folder)
        with pytest.raises(ValueError, match=f"is in the {name} format already"):
            to_hf(folder, tmp_path / "x")
        with pytest.raises(FileExistsError):
            export(tmp_path / "jax", folder)
        export(tmp_path / "jax", folder, overwrite=True)
        for path in folder.iterdir():
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + b"#" + data[len(data) // 2 + 1 :])
            with pytest.raises(ValueError, match=str(folder)):
                verify(folder)
            path.write_bytes(data)
        verify(folder)


# --- tokenizers ---


def meta_model(tmp_path: Path, vocabulary: bytes, size: int) -> Model:
    config = replace(META, vocab_size=size)
    model = Model(config, sharp_params(6, config), tokenizer_from_files({MODEL: vocabulary}))
    save(tmp_path / "jax", model)
    return model


def test_metas_tokenizer_becomes_one_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    model = meta_model(tmp_path, rank_file(), 600)
    to_hf(tmp_path / "jax", tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    ours = model.tokenizer
    for text in ("hello", "hello hello  world", "é中😀\x00", "a\n\n b", "<|eot_id|>", ""):
        assert theirs(text, split_special_tokens=True).input_ids == ours.encode(text, bos=True)
    special = ours.vocabulary.special
    assert theirs.convert_tokens_to_ids("<|eot_id|>") == special["<|eot_id|>"]
    assert theirs("<|eot_id|>").input_ids[-1] == special["<|eot_id|>"]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello 中"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "world"},
    ]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert rendered == apply_chat_template(model, messages)
    generation = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert tuple(generation.eos_token_id) == ours.stop_ids
    to_jax(tmp_path / "hf", tmp_path / "again")
    again = load(tmp_path / "again").tokenizer
    assert again.encode("hello world 中", bos=True) == ours.encode("hello world 中", bos=True)
    assert (again.bos_id, again.stop_ids) == (ours.bos_id, ours.stop_ids)
    with pytest.raises(ValueError, match=r"has no tokenizer\.model of Meta's"):
        to_meta(tmp_path / "again", tmp_path / "meta")


def test_metas_tokenizer_goes_back_to_meta(tmp_path: Path) -> None:
    meta_model(tmp_path, rank_file(), 600)
    to_meta(tmp_path / "jax", tmp_path / "meta")
    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == rank_file()


def test_a_tokenizer_json_is_kept_as_it_is(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=300)
    source = write_folder(
        tmp_path / "in", {**V4, "vocab_size": 300}, hf_tensors(sharp_params(1, config))
    )
    (source / "tokenizer.json").write_bytes(sentencepiece_like())
    settings = {"eos_token": "<end>", "chat_template": "{{ messages[0].content }}<end>"}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [260, 5]}))
    to_jax(source, tmp_path / "jax")
    to_hf(tmp_path / "jax", tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == sentencepiece_like()
    to_jax(tmp_path / "hf", tmp_path / "again")
    ours, again = (load(tmp_path / name).tokenizer for name in ("jax", "again"))
    assert again.files == ours.files
    assert again == ours or again.stop_ids == ours.stop_ids == (260, 5)


@pytest.mark.real
def test_the_default_model_through_transformers(tmp_path: Path, default_model: Model) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from convert.fetch.models import fetch

    to_hf(fetch("smollm2-135m-instruct"), tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    text = "The capital of France is"
    assert theirs(text).input_ids == default_model.tokenizer.encode(text, bos=True)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert rendered == apply_chat_template(default_model, messages)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True).eval()
    tokens = np.array([rendered])
    expected, _ = jax.jit(forward, static_argnames="config")(
        default_model.params, jnp.asarray(tokens), default_model.config
    )
    np.testing.assert_allclose(
        transformers_logits(model, tokens), np.asarray(expected), rtol=0, atol=1e-3
    )


def test_every_source_gives_the_same_tensors(tmp_path: Path) -> None:
    """Hugging Face 4 and 5, Meta in 1, 2 and 4 shards, and GGUF, of one model: one set of hashes."""
    config = replace(META, rope_scaling=None, max_seq_len=8192)
    params = sharp_params(8, config)
    save(tmp_path / "jax", Model(config, params, None))
    to_hf(tmp_path / "jax", tmp_path / "hf")
    values = {"use_scaled_rope": False}
    for shards in (1, 2, 4):
        write_meta(
            tmp_path / f"meta{shards}", params, config, shards=shards, values=META_PARAMS | values
        )
    write_gguf(tmp_path / "model.gguf", config, params)
    expected = verify(tmp_path / "jax")["tensors"]
    for name in ("hf", "meta1", "meta2", "meta4", "model.gguf"):
        to_jax(tmp_path / name, tmp_path / "out" / name)
        tensors = verify(tmp_path / "out" / name)["tensors"]
        assert tensors == expected, name
        assert load(tmp_path / "out" / name).config == config
