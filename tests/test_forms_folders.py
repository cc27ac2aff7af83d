"""Folders as people have them: what means the same goes in, and what does not is named as what it is."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import (
    META,
    META_PARAMS,
    PARAMS,
    PLAIN,
    V4,
    hf_tensors,
    meta_tensors,
    notes,
    write_folder,
    write_gguf,
    write_sharded,
)
from random_models import TINY, replace, sharp_params
from refusals import refused
from tokenizer_files import rank_file, sentencepiece_like

from convert.__main__ import main
from convert.to_jax import open_source
from jax_llama3 import Params, load
from jax_llama3.checkpoint.manifest import read_manifest

TIED = replace(TINY, tie_embeddings=True)
TIED_PARAMS = sharp_params(2, TIED)
V4_TIED = {**V4, "tie_word_embeddings": True}
MISTRAL = {**V4, "model_type": "mistral", "sliding_window": None}


# --- the files of a folder ---


def test_a_trainers_folder_goes_in(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "checkpoint-500", V4, hf_tensors(PARAMS))
    for name in (
        "optimizer.pt optimizer.bin scheduler.pt rng_state.pth rng_state_0.pth training_args.bin "
        "trainer_state.json scaler.pt latest"
    ).split():
        (source / name).write_bytes(b"{}")
    (source / "global_step500").mkdir()
    assert notes(source) == []
    assert set(read_manifest(tmp_path / "checkpoint-500-out")["source"]["files"]) == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("write", [write_folder, write_sharded], ids=["single", "sharded"])
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"]
)
def test_safetensors_go_in_with_a_note_on_what_stands_beside_them(
    tmp_path: Path, write: Callable, name: str
) -> None:
    source = write(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / name).write_bytes(b"never read")
    (source / "params.json").write_text("{}")
    used = "model.safetensors" + (".index.json" if write is write_sharded else "")
    assert notes(source) == [f"note: {name} is not read; the weights are those of {used}"]


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model-00001-of-00002.fp16.safetensors",
    ],
)
@pytest.mark.parametrize("write", [write_folder, write_sharded], ids=["single", "sharded"])
def test_another_dtype_beside_the_weights_is_not_read(
    tmp_path: Path, write: Callable, name: str
) -> None:
    source = write(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / name).write_bytes(b"never read")
    used = "model.safetensors" + (".index.json" if write is write_sharded else "")
    assert notes(source) == [f"note: {name} is not read; the weights are those of {used}"]


def test_an_index_may_name_what_looks_like_another_dtype(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / "model.safetensors").rename(source / "model.fp16.safetensors")
    listing = dict.fromkeys(hf_tensors(PARAMS), "model.fp16.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listing}))
    assert notes(source) == []


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "model.safetensors"]
)
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    assert f"{source / name}: a git-lfs pointer, not the file" in refused(source)


def test_metas_shards_beside_a_hugging_face_folder_stay_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / "consolidated.00.pth").touch()
    line = f"{source} holds a second format, consolidated.00.pth; move one away"
    assert refused(source) == line


MISTRALS = {
    **{key: META_PARAMS[key] for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")},
    **{key: META_PARAMS[key] for key in ("norm_eps", "rope_theta")},
    "head_dim": 24,
    "hidden_dim": 90,
    "sliding_window": None,
    "max_position_embeddings": 4096,
}
MISTRAL_CONFIG = replace(META, head_dim=24, ffn_dim=90, rope_scaling=None, max_seq_len=4096)


def write_consolidated(folder: Path, shards: int = 1, **changes: object) -> tuple[Path, Params]:
    params = sharp_params(3, MISTRAL_CONFIG)
    tensors = {k: np.ascontiguousarray(t) for k, t in meta_tensors(params, MISTRAL_CONFIG).items()}
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({**MISTRALS, **changes}))
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "consolidated.safetensors")
        return folder, params
    places = {}
    for index in range(shards):
        names = list(tensors)[index::shards]
        file = f"consolidated-{index + 1:05}-of-{shards:05}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index_file = folder / "consolidated.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": places}))
    return folder, params


@pytest.mark.parametrize("shards", [1, 3])
def test_consolidated_safetensors_go_in(tmp_path: Path, shards: int) -> None:
    source, params = write_consolidated(tmp_path / "in", shards)
    assert notes(source, params) == []
    assert load(tmp_path / "in-out").config == MISTRAL_CONFIG


def test_consolidated_safetensors_go_in_beside_a_config_json_without_weights(
    tmp_path: Path,
) -> None:
    source, params = write_consolidated(tmp_path / "in")
    (source / "config.json").write_text(json.dumps(MISTRAL))
    assert notes(source, params) == [
        "note: config.json is not read; the model is that of params.json"
    ]


CONSOLIDATED = {
    "a window": ({"sliding_window": 4096}, None, "sliding_window 4096 is not supported, only None"),
    "experts": ({"moe": {"num_experts": 8}}, None, "moe {'num_experts': 8} is not supported"),
    "unknown": ({"magic": 1}, None, "params.json: unknown key magic; delete it if it changes"),
    "another width": (
        {"hidden_dim": 96},
        None,
        "layers.0.feed_forward.w1.weight has shape [90, 64]",
    ),
    "Meta's beside": ({}, "consolidated.00.pth", "holds a second format, consolidated.00.pth"),
    "others beside": ({}, "model.safetensors", "holds a second format, model.safetensors"),
    "a stray part": ({}, "consolidated-2.safetensors", "belongs to no index; move it away"),
}


@pytest.mark.parametrize(
    ("changes", "beside", "message"), CONSOLIDATED.values(), ids=CONSOLIDATED.keys()
)
def test_consolidated_safetensors_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict, beside: str | None, message: str
) -> None:
    source, _ = write_consolidated(tmp_path / "in", **changes)
    if beside is not None:
        (source / beside).touch()
    assert message in refused(source)


# --- names ---


def renamed(rename: Callable[[str], str], params: Params) -> dict[str, np.ndarray]:
    return {rename(name): tensor for name, tensor in hf_tensors(params).items()}


NAMES = {
    "bare": (
        lambda name: name.removeprefix("model."),
        ["note: the tensors are a bare LlamaModel's; model. put before their names"],
    ),
    "module": (
        lambda name: f"module.{name}",
        ["note: module. left out of the names of the tensors"],
    ),
    "compiled": (
        lambda name: f"_orig_mod.{name}",
        ["note: _orig_mod. left out of the names of the tensors"],
    ),
    "compiled layer by layer, on several devices": (
        lambda name: "module." + re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", name),
        ["note: _orig_mod. and module. left out of the names of the tensors"],
    ),
    "compiled and bare": (
        lambda name: "_orig_mod." + name.removeprefix("model."),
        [
            "note: _orig_mod. left out of the names of the tensors",
            "note: the tensors are a bare LlamaModel's; model. put before their names",
        ],
    ),
}


@pytest.mark.parametrize(("rename", "said"), NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_other_names_of_the_same_tensors_go_in_with_a_note(
    tmp_path: Path, rename: Callable, said: list[str], tied: bool
) -> None:
    params, config = (TIED_PARAMS, V4_TIED) if tied else (PARAMS, V4)
    assert notes(write_folder(tmp_path / "in", config, renamed(rename, params)), params) == said


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    tensors = hf_tensors(PARAMS)
    tensors["module.model.norm.weight"] = tensors["model.norm.weight"]
    source = write_folder(tmp_path / "in", V4, tensors)
    found = refused(source)
    assert "module.model.norm.weight" in found
    assert found.endswith("both are model.norm.weight; remove one of them")


def test_an_untied_model_without_a_head_is_refused_with_the_remedy(tmp_path: Path) -> None:
    bare = renamed(lambda name: name.removeprefix("model."), TIED_PARAMS)
    line = refused(write_folder(tmp_path / "in", V4, bare))
    said = "lm_head.weight is missing (if it is the embedding, set tie_word_embeddings to true)"
    assert line == said


def test_another_head_in_a_tied_model_is_refused_with_both_remedies(tmp_path: Path) -> None:
    assert refused(write_folder(tmp_path / "in", V4_TIED, hf_tensors(PARAMS))) == (
        "lm_head.weight differs from model.embed_tokens.weight, but the config ties them: set "
        "tie_word_embeddings to false to keep lm_head.weight, or delete lm_head.weight from the file"
    )


# --- notes, and ids that the vocabulary lacks ---


def test_notes_are_printed_once_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / "pytorch_model.bin").touch()
    assert main(["to-jax", str(source), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out'}\n"
    assert captured.err.splitlines() == [
        "note: pytorch_model.bin is not read; the weights are those of model.safetensors",
        "note: the source has no tokenizer; the model takes and gives token ids only",
    ]


def test_inspect_tells_the_notes_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / "pytorch_model.bin").touch()
    assert main(["inspect", str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    note = "  note: pytorch_model.bin is not read; the weights are those of model.safetensors"
    assert lines.count(note) == 1


def test_a_source_without_a_tokenizer_goes_in_with_a_note(tmp_path: Path) -> None:
    hf = write_folder(tmp_path / "hf", V4, hf_tensors(PARAMS))
    file = write_gguf(tmp_path / "in.gguf", PLAIN, sharp_params(11, PLAIN))
    meta, _ = write_consolidated(tmp_path / "meta")
    for path in (hf, file, meta):
        told = [d for d in open_source(path).decisions if d.startswith("note: ")]
        assert len(told) == 1
        assert told[0].startswith("note: the source has no tokenizer")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_that_the_vocabulary_lacks_is_named_in_the_users_file(
    tmp_path: Path, name: str
) -> None:
    config = replace(TINY, vocab_size=300)
    values = {**V4, "vocab_size": 300, "eos_token_id": 280 if name == "config.json" else 1}
    source = write_folder(tmp_path / "in", values, hf_tensors(sharp_params(1, config)))
    (source / "tokenizer.json").write_bytes(sentencepiece_like())
    if name != "config.json":
        (source / name).write_text(json.dumps({"eos_token_id": [1, 280]}))
    assert refused(source) == (
        f"{source / name}: eos_token_id 280 is beyond the 261 tokens of the tokenizer; "
        "correct it, or bring the tokenizer that belongs to it"
    )


def test_a_beginning_that_the_vocabulary_lacks_is_named_in_the_users_file(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=300)
    values = {**V4, "vocab_size": 300, "bos_token_id": 280}
    source = write_folder(tmp_path / "in", values, hf_tensors(sharp_params(1, config)))
    (source / "tokenizer.json").write_bytes(sentencepiece_like())
    assert "config.json: bos_token_id 280 is beyond the 261 tokens" in refused(source)


def test_metas_tokenizer_beside_consolidated_safetensors_goes_along(tmp_path: Path) -> None:
    source, _ = write_consolidated(tmp_path / "in")
    shutil.copytree(source, tmp_path / "with")
    (tmp_path / "with" / "tokenizer.model").write_bytes(rank_file())
    assert "tokenizer.model" in open_source(tmp_path / "with").texts
