"""A config.json as people have them: keys without effect, nulls, other kinds of models."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    PARAMS,
    V4,
    hf_tensors,
    notes,
    write_folder,
)
from random_models import TINY
from refusals import refused

from convert.formats.huggingface.config import parse_config
from jax_llama3 import load

MISTRAL = {**V4, "model_type": "mistral", "sliding_window": None}
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
