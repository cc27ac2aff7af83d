"""What a path is: a model in one of the formats, or something else, which is named; and its links."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import (
    PARAMS,
    V4,
    hf_tensors,
    notes,
    write_folder,
    write_sharded,
)
from refusals import refused

from convert.to_jax import open_source

# --- what a path is ---


def as_adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").touch()
    (folder / "tokenizer.json").write_text("{}")


def as_hub_cache(folder: Path) -> None:
    for name in ("blobs", "refs", "snapshots"):
        (folder / name).mkdir()


def as_checkpoints(folder: Path) -> None:
    write_folder(folder / "checkpoint-500", V4, {})


def holding(*names: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).write_text("{}")

    return apply


IS = {
    "an adapter": (
        as_adapter,
        "{0} is a LoRA adapter of meta-llama/Llama-3.2-1B: convert that model, and then: "
        "convert merge DIR {0} DST",
    ),
    "a tokenizer": (
        holding("tokenizer.json", "tokenizer_config.json"),
        "{0} holds only a tokenizer; config.json and the weights are missing",
    ),
    "GGUF files": (
        holding("b.gguf", "a.gguf"),
        "{0} is a folder of GGUF files; name one of them, such as {0}/a.gguf",
    ),
    "weights alone": (
        holding("model.safetensors"),
        "{0}/config.json is missing; copy it from where the weights come from",
    ),
    "the hub's cache": (
        as_hub_cache,
        "{0} is the hub's cache; name a folder in {0}/snapshots",
    ),
    "DeepSpeed's": (
        holding("config.json", "zero_to_fp32.py"),
        "{0} holds DeepSpeed's parts of a model; join them with its zero_to_fp32.py",
    ),
    "another framework's": (
        holding("tf_model.h5"),
        "{0} holds only weights of another framework; load them in transformers and "
        "save_pretrained them as safetensors",
    ),
    "checkpoints": (
        as_checkpoints,
        "{0} holds no checkpoint itself; name {0}/checkpoint-500",
    ),
    "a config alone": (
        holding("config.json", "README.md"),
        "{0} holds neither model.safetensors nor model.safetensors.index.json",
    ),
    "nothing": (
        holding("README.md"),
        "{0} holds neither config.json (Hugging Face) nor params.json (Meta)",
    ),
}


@pytest.mark.parametrize(("make", "line"), IS.values(), ids=IS.keys())
def test_a_folder_is_refused_as_what_it_is(tmp_path: Path, make: Callable, line: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder)
    if (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(V4))
    assert refused(folder) == line.format(folder)


def test_an_adapter_beside_whole_weights_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    as_adapter(source)
    assert refused(source).endswith("; delete adapter_config.json to convert the weights beside it")


def test_one_file_of_a_folder_leads_to_the_folder(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    path = source / "model.safetensors"
    with pytest.raises(ValueError, match="one file of a checkpoint") as caught:
        open_source(path)
    line = f"{path} is one file of a checkpoint; name its folder, {source}"
    assert str(caught.value) == line


def test_shards_without_their_index_are_named(tmp_path: Path) -> None:
    source = write_sharded(tmp_path / "in", V4, hf_tensors(PARAMS))
    (source / "model.safetensors.index.json").unlink()
    assert refused(source) == f"{source / 'model.safetensors.index.json'} is missing"


# --- links ---

HASHES = "0123456789abcdef0123456789abcdef01234567", "0f" * 32


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_links_into_the_hubs_cache_go_in(tmp_path: Path, form: str) -> None:
    blobs = tmp_path / "cache" / "hub" / "models--lab--model" / "blobs"
    blobs.mkdir(parents=True)
    source = write_folder(tmp_path / "local dir", V4, hf_tensors(PARAMS))
    for name, path in zip(HASHES, sorted(source.iterdir()), strict=True):
        path.rename(blobs / name)
        target = blobs / name
        path.symlink_to(target if form == "absolute" else os.path.relpath(target, source))
    assert notes(source) == []


OUTSIDE = {
    "another folder": "elsewhere/model.safetensors",
    "no hash": "models--lab--model/blobs/model.safetensors",
    "no repository": f"datasets--lab--data/blobs/{HASHES[0]}",
    "not among the blobs": f"models--lab--model/refs/{HASHES[0]}",
    "deeper": f"models--lab--model/blobs/deeper/{HASHES[0]}",
}


@pytest.mark.parametrize("place", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_other_links_are_refused_with_the_remedy(tmp_path: Path, place: str) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    path, target = source / "model.safetensors", tmp_path / place
    target.parent.mkdir(parents=True)
    path.rename(target)
    path.symlink_to(target)
    line = f"{path} is a link that leaves its folder; copy it, or name the real folder"
    assert refused(source) == line
