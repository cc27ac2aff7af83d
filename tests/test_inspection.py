"""`inspect`: what a checkpoint is, from its headers."""

import re
from pathlib import Path

import pytest
from checkpoints import META, PARAMS, PLAIN, V4, hf_tensors, write_folder, write_gguf, write_meta
from random_models import TINY, replace, sharp_params

from convert.__main__ import main
from convert.export import to_hf
from convert.inspection import inspect
from jax_llama3 import Model, count_params, save

SOURCES = {
    "huggingface": (TINY, lambda path: write_folder(path, V4, hf_tensors(PARAMS))),
    "gguf": (
        PLAIN,
        lambda path: write_gguf(path.with_suffix(".gguf"), PLAIN, sharp_params(1, PLAIN)),
    ),
    "jax": (TINY, lambda path: save(path, Model(TINY, PARAMS, None)) or path),
    "meta": (META, lambda path: write_meta(path, sharp_params(1, META), shards=2)),
}
KINDS = ["huggingface", "gguf", "jax", pytest.param("meta", marks=pytest.mark.reference)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_names_kind_config_and_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    config, write = SOURCES[kind]
    path = write(tmp_path / "model")
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: {kind}, ")
    size = 4 * count_params(config)
    assert any(line.startswith(f"21 tensors, {size:,} bytes") for line in lines)
    assert any(re.match(r"  n_kv_heads +2$", line) for line in lines)
    assert any("float32" in line and "[" in line for line in lines)
    needs = [line for line in lines if line.startswith("to-jax: 21 tensors")]
    assert len(needs) == (kind != "jax")


def test_an_export_is_what_it_was_exported_to(tmp_path: Path) -> None:
    save(tmp_path / "jax", Model(TINY, PARAMS, None))
    to_hf(tmp_path / "jax", tmp_path / "export")
    assert "huggingface" in inspect(tmp_path / "export")


def test_what_cannot_be_converted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tensors = hf_tensors(PARAMS)
    del tensors["model.norm.weight"]
    path = write_folder(tmp_path / "hf", V4, tensors)
    assert main(["inspect", str(path)]) == 0
    assert "cannot be converted: model.norm.weight is missing" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("error: no file or folder at")


def test_a_tied_model_that_holds_its_output_too_is_no_error(tmp_path: Path) -> None:
    config = replace(TINY, tie_embeddings=True)
    tensors = hf_tensors(sharp_params(1, config))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    path = write_folder(tmp_path / "hf", {**V4, "tie_word_embeddings": True}, tensors)
    lines = inspect(path).splitlines()
    assert lines[-1].startswith("to-jax: 20 tensors")
    assert any("compares lm_head.weight with the embedding" in line for line in lines)
