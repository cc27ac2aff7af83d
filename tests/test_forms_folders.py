"""Folders as people have them: what means the same goes in, and what does not is named as what it is."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import (
    META,
    META_PARAMS,
    PARAMS,
    PLAIN,
    V4,
    bits,
    hf_tensors,
    meta_tensors,
    write_folder,
    write_gguf,
    write_sharded,
)
from random_models import TINY, replace, sharp_params
from refusals import refused
from tokenizer_files import rank_file, sentencepiece_like

from convert.__main__ import main
from convert.formats.huggingface.config import parse_config
from convert.to_jax import open_source, to_jax
from jax_llama3 import Params, load
from jax_llama3.checkpoint.manifest import read_manifest

TIED = replace(TINY, tie_embeddings=True)
TIED_PARAMS = sharp_params(2, TIED)
V4_TIED = {**V4, "tie_word_embeddings": True}
MISTRAL = {**V4, "model_type": "mistral", "sliding_window": None}


def notes(source: Path, params: Params = PARAMS) -> list[str]:
    """The notes of a conversion whose tree is that of `params`, bit for bit."""
    said: list[str] = []
    out = source.parent / f"{source.name}-out"
    to_jax(source, out, on_note=said.append)
    assert bits(load(out).params) == bits(params)
    kept = [line for line in read_manifest(out)["decisions"] if line.startswith("note: ")]
    assert said == kept
    return [line for line in said if "no tokenizer" not in line]


# --- config.json ---

WITHOUT_EFFECT = {
    "unsloth_fixed": True,
    "unsloth_version": "2025.1.5",
    "_flash_attn_2_enabled": True,
    "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
    "quantization_config": None,
    "max_sequence_length": V4["max_position_embeddings"],
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "max_length": 4096,
    "repetition_penalty": 1.1,
    "pretraining_tp": 2,
    "is_decoder": False,
    "pruned_heads": {},
    "add_cross_attention": False,
    "layer_types": ["full_attention", "full_attention"],
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def test_config_keys_without_effect_go_in(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", {**V4, **WITHOUT_EFFECT}, hf_tensors(PARAMS))
    assert notes(source) == []
    assert load(tmp_path / "in-out").config == TINY


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["LlamaConfig", "MistralConfig"])
def test_every_key_that_transformers_writes_is_known(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    values = getattr(transformers, kind)().to_dict()
    values |= dict.fromkeys(transformers.GenerationConfig._get_default_generation_params())
    assert parse_config({**values, "sliding_window": None}).dim == 4096


def test_a_key_that_is_not_known_is_refused_with_the_remedy(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", {**V4, "rope_magic": 1}, hf_tensors(PARAMS))
    line = f"{source / 'config.json'}: unknown key rope_magic; delete it if it changes nothing"
    assert refused(source) == line


def test_another_max_sequence_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_sequence_length 2048 contradicts max_pos.* 512"):
        parse_config({**V4, "max_sequence_length": 2048})


@pytest.mark.parametrize(
    "key",
    [
        "tie_word_embeddings",
        "rope_theta",
        "attention_bias",
        "mlp_bias",
        "pretraining_tp",
        "rope_parameters",
    ],
)
def test_null_is_the_default_where_transformers_takes_it(key: str) -> None:
    assert parse_config({**V4, key: None}) == TINY


def test_nulls_in_the_scaling_are_absent_keys() -> None:
    scaling = {**V4["rope_scaling"], "type": None, "partial_rotary_factor": None}
    assert parse_config({**V4, "rope_scaling": scaling}) == TINY


def test_a_null_without_a_default_is_named_by_the_users_key() -> None:
    for key in ("max_position_embeddings", "rms_norm_eps", "intermediate_size", "hidden_size"):
        with pytest.raises(ValueError, match=rf"^{key} must be a positive .*, not None$"):
            parse_config({**V4, key: None})


@pytest.mark.parametrize("kind", "qwen2 mixtral mllama llama4 phi3 gemma2 gpt2".split())
def test_another_model_type_is_named_before_anything_else(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    config = {"model_type": kind, "some_key": 1, "quantization_config": {"quant_method": "gptq"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "consolidated.00.pth").touch()
    line = f"{source / 'config.json'}: model_type '{kind}' is not supported, only 'llama' and 'mistral'"
    assert refused(source) == line


def test_a_mistral_without_a_window_goes_in(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", MISTRAL, hf_tensors(PARAMS))
    assert notes(source) == []
    assert load(tmp_path / "in-out").config == TINY


def test_a_mistral_with_a_window_is_refused_by_name() -> None:
    for values, said in (
        (
            {**MISTRAL, "sliding_window": 64},
            "sliding_window 64 is not supported; set it to null if",
        ),
        (
            {key: value for key, value in MISTRAL.items() if key != "sliding_window"},
            "sliding_window 4096, which an absent key means, is not supported",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            parse_config(values)


@pytest.mark.reference
def test_what_mistrals_absent_keys_mean_is_what_transformers_takes() -> None:
    transformers = pytest.importorskip("transformers")
    absent = ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling")
    absent += ("max_position_embeddings", "tie_word_embeddings")
    values = {key: value for key, value in MISTRAL.items() if key not in absent}
    values |= {"hidden_size": 64, "num_attention_heads": 16}
    config = parse_config(values)
    theirs = transformers.MistralConfig(hidden_size=64, num_attention_heads=16)
    assert config.n_kv_heads == theirs.num_key_value_heads == 8
    assert config.head_dim == theirs.head_dim
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.max_seq_len == theirs.max_position_embeddings
    assert config.tie_embeddings == theirs.tie_word_embeddings
    with pytest.raises(ValueError, match=f"sliding_window {theirs.sliding_window}"):
        parse_config({k: v for k, v in values.items() if k != "sliding_window"})


UNSUPPORTED = {
    "exl2": ({"quant_method": "exl2", "bits": 3.5}, "exl2 with 3.5 bits"),
    "mxfp4": ({"quant_method": "mxfp4"}, "mxfp4 with 4 bits"),
    "nothing said": ({}, "an unnamed method"),
}


@pytest.mark.parametrize(("settings", "said"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_a_quantisation_that_is_not_read_is_named_by_method_and_bits(
    tmp_path: Path, settings: dict, said: str
) -> None:
    config = {**V4, "quantization_config": settings, "some_key": 1}
    line = refused(write_folder(tmp_path / "in", config, {"x.qweight": np.zeros(1, np.int32)}))
    assert f"config.json: quantization_config: weights quantised by {said} are not supp" in line


def test_mlxs_quantisation_is_named(tmp_path: Path) -> None:
    config = {**V4, "quantization": {"group_size": 64, "bits": 4}}
    assert "by mlx with 4 bits" in refused(write_folder(tmp_path / "in", config, {}))


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


# --- GGUF ---

GGUF_PARAMS = sharp_params(11, PLAIN)


def write_gguf_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable[[gguf.GGUFWriter], None]
) -> Path:
    """A file with more fields than the model's own."""
    write = gguf.GGUFWriter.write_header_to_file

    def added(writer: gguf.GGUFWriter) -> None:
        add(writer)
        write(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", added)
    return write_gguf(path, PLAIN, GGUF_PARAMS)


def add_nones(writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(0)
    writer.add_expert_used_count(0)
    writer.add_sliding_window(0)
    writer.add_clamp_kqv(0.0)
    writer.add_causal_attention(True)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_rope_scaling_factor(1.0)
    writer.add_rope_scaling_finetuned(False)
    writer.add_tensor_data_layout("Meta AI original pth")


def test_gguf_keys_that_mean_none_go_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add_nones)
    assert notes(source, GGUF_PARAMS) == []
    assert load(tmp_path / "in.gguf-out").config == PLAIN


GGUF_REFUSED = {
    "experts": (lambda w: w.add_expert_count(8), "llama.expert_count 8 is not supported, only 0"),
    "a window": (lambda w: w.add_sliding_window(64), "llama.attention.sliding_window 64 is not"),
    "scaling": (
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
        "llama.rope.scaling.type 'linear' is not supported, only 'none'",
    ),
    "unknown": (
        lambda w: w.add_uint32("llama.magic", 0),
        "unknown key llama.magic; delete it if it changes nothing",
    ),
}


@pytest.mark.parametrize(("add", "message"), GGUF_REFUSED.values(), ids=GGUF_REFUSED.keys())
def test_gguf_keys_that_mean_something_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable, message: str
) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add)
    assert message in refused(source)


def add_adapter(writer: gguf.GGUFWriter) -> None:
    writer.add_type("adapter")
    writer.add_string("general.base_model.0.name", "Llama 3.2 1B")


GGUF_IS = {
    "an adapter": (add_adapter, "it is a LoRA adapter of Llama 3.2 1B: convert that model"),
    "a projector": (lambda w: w.add_type("mmproj"), "it is of the type 'mmproj', not a model"),
}


@pytest.mark.parametrize(("add", "message"), GGUF_IS.values(), ids=GGUF_IS.keys())
def test_a_gguf_file_is_refused_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable, message: str
) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add)
    assert refused(source).startswith(f"{source}: {message}")


def test_a_gguf_file_of_a_vocabulary_alone_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    line = "it holds no tensors, only a vocabulary; name the model's own file"
    assert refused(tmp_path / "in.gguf") == f"{tmp_path / 'in.gguf'}: {line}"


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
    file = write_gguf(tmp_path / "in.gguf", PLAIN, GGUF_PARAMS)
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


def add_bad_end(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(7)


def test_an_end_that_a_gguf_vocabulary_lacks_is_named_by_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add_bad_end)
    line = f"{source}: tokenizer.ggml.eos_token_id 7 is beyond its 3 tokens"
    assert refused(source) == line


def test_metas_tokenizer_beside_consolidated_safetensors_goes_along(tmp_path: Path) -> None:
    source, _ = write_consolidated(tmp_path / "in")
    shutil.copytree(source, tmp_path / "with")
    (tmp_path / "with" / "tokenizer.model").write_bytes(rank_file())
    assert "tokenizer.model" in open_source(tmp_path / "with").texts
