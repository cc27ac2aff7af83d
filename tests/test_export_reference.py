"""Exports beside the programs they are for: transformers and Meta's own code read and compute the same."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llama_models")
from checkpoints import META, META_PARAMS, bits, meta_shards, write_gguf, write_meta
from disks import full_from
from random_models import TINY, replace, sharp_params
from tokenizer_files import rank_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers_reference import transformers_logits

from convert.__main__ import main
from convert.export import to_hf, to_meta
from convert.fetch.models import fetch
from convert.formats.tokenizer import choose_chat_format
from convert.to_jax import to_jax
from jax_llama3 import Config, Model, Params, apply_chat_template, forward, load, save
from jax_llama3.checkpoint.verification import verify
from jax_llama3.text.tokenizer import MODEL, tokenizer_from_files

pytestmark = pytest.mark.reference
TOKENS = np.random.default_rng(0).integers(0, 101, (2, 90))


def logits(params: Params, config: Config) -> np.ndarray:
    return np.asarray(forward(params, jnp.asarray(TOKENS), config)[0])


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


def assert_same(
    found: dict[str, torch.Tensor], expected: dict[str, np.ndarray], dtype: str
) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        wanted = torch.tensor(tensor).to(getattr(torch, dtype))
        assert found[name].dtype == wanted.dtype, name
        assert torch.equal(found[name].view(torch.uint8), wanted.view(torch.uint8)), name


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


@pytest.mark.parametrize(
    ("world", "tied"),
    [
        (1, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(1, False), (2, False), (2, True)]
        ),
    ],
)
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
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_to_meta_gives_back_the_source_bit_for_bit(tmp_path: Path, shards: int, dtype: str) -> None:
    params = sharp_params(4, META)
    source = write_meta(tmp_path / "in", params, shards=2, dtype=dtype)
    to_jax(source, tmp_path / "jax")
    to_meta(tmp_path / "jax", tmp_path / "meta", shards=shards)
    expected = meta_shards(params, META, shards)
    for rank in range(shards):
        path = tmp_path / "meta" / f"consolidated.{rank:02}.pth"
        for mmap in (False, True):
            found = torch.load(path, weights_only=True, mmap=mmap)
            assert_same(found, expected[rank], dtype)
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
    assert_same(found, meta_shards(params, META, 1)[0], "float32")
    to_jax(tmp_path / "meta", tmp_path / "again")
    assert bits(load(tmp_path / "again").params) == bits(params)


@pytest.mark.parametrize("call", [0, 3, 40])
def test_a_full_disk_while_meta_shards_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, call: int
) -> None:
    save(tmp_path / "jax", Model(META, sharp_params(1, META), None))
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full_from(call, os.pwrite))
        assert main(["to-meta", str(tmp_path / "jax"), str(tmp_path / "meta")]) == 1
    gc.collect()
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["jax"]


def meta_model(tmp_path: Path, vocabulary: bytes, size: int, chat: str | None = None) -> Model:
    config = replace(META, vocab_size=size)
    texts, _ = choose_chat_format({MODEL: vocabulary}, chat)
    model = Model(config, sharp_params(6, config), tokenizer_from_files(texts))
    save(tmp_path / "jax", model)
    return model


def test_metas_tokenizer_becomes_one_that_transformers_reads(tmp_path: Path) -> None:
    model = meta_model(tmp_path, rank_file(), 600, "llama3")
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


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_through_transformers(tmp_path: Path, default_model: Model) -> None:
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
