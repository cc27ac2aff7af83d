"""Back to Hugging Face's format bit for bit; and what no export is made of."""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import META, V4, hf_tensors, write_folder
from random_models import TINY, replace, sharp_params
from tokenizer_files import sentencepiece_like

from convert.export import to_hf, to_meta
from convert.to_jax import to_jax
from jax_llama3 import Config, Model, load, save
from jax_llama3.checkpoint.verification import verify


def assert_same(folder: Path, expected: dict[str, np.ndarray]) -> None:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
        found |= safetensors.numpy.load_file(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_to_hf_gives_back_the_source_bit_for_bit(tmp_path: Path, dtype: type) -> None:
    tensors = {
        name: array.astype(dtype) for name, array in hf_tensors(sharp_params(1, TINY)).items()
    }
    source = write_folder(tmp_path / "in", V4, tensors)
    to_jax(source, tmp_path / "jax")
    to_hf(tmp_path / "jax", tmp_path / "hf")
    assert_same(tmp_path / "hf", tensors)
    to_jax(tmp_path / "hf", tmp_path / "again")
    assert load(tmp_path / "again").config == load(tmp_path / "jax").config
    verify(tmp_path / "hf")


def test_mixed_dtypes_are_kept(tmp_path: Path) -> None:
    tensors = {
        name: array if array.ndim == 1 else array.astype(ml_dtypes.bfloat16)
        for name, array in hf_tensors(sharp_params(1, TINY)).items()
    }
    source = write_folder(tmp_path / "in", V4, tensors)
    to_jax(source, tmp_path / "jax")
    to_hf(tmp_path / "jax", tmp_path / "hf")
    assert_same(tmp_path / "hf", tensors)


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


@pytest.mark.parametrize(
    ("export", "name"),
    [(to_hf, "huggingface"), pytest.param(to_meta, "meta", marks=pytest.mark.reference)],
)
def test_exports_are_checked_but_not_loaded(tmp_path: Path, export: Callable, name: str) -> None:
    save(tmp_path / "jax", Model(META, sharp_params(1, META), None))
    folder = tmp_path / name
    export(tmp_path / "jax", folder)
    with pytest.raises(ValueError, match=f"is in the {name} format"):
        load(folder)
    with pytest.raises(ValueError, match=f"is in the {name} format"):
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
