"""Conversion beside transformers and torch: what they save, their defaults, their rounding."""

from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from checkpoints import PARAMS, V4, hf_tensors, write_folder
from random_models import TINY
from transformers_reference import transformers_logits, transformers_model

from convert.formats.huggingface.folder import parse_config
from convert.to_jax import to_jax
from jax_llama3 import forward, load

pytestmark = pytest.mark.reference


def test_what_transformers_saves_converts_and_computes_the_same(tmp_path: Path) -> None:
    reference = transformers_model(PARAMS, TINY)
    reference.save_pretrained(tmp_path / "in", max_shard_size="60KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    to_jax(tmp_path / "in", tmp_path / "out")
    model = load(tmp_path / "out")
    tokens = np.arange(100)[None]
    logits, _ = forward(model.params, tokens, model.config)
    np.testing.assert_allclose(logits, transformers_logits(reference, tokens), rtol=0, atol=1e-3)


def test_defaults_of_absent_keys_are_those_of_transformers() -> None:
    absent = ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling")
    absent += ("max_position_embeddings", "tie_word_embeddings")
    config = parse_config({key: value for key, value in V4.items() if key not in absent})
    theirs = transformers.LlamaConfig(hidden_size=48, num_attention_heads=6)
    assert config.n_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == theirs.head_dim
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.rope_scaling is None
    assert config.max_seq_len == theirs.max_position_embeddings
    assert config.tie_embeddings == theirs.tie_word_embeddings


def test_bfloat16_equals_torch_rounding(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))
    to_jax(source, tmp_path / "bf16", dtype="bfloat16")
    half = load(tmp_path / "bf16").params
    for ours, theirs in zip(jax.tree.leaves(half), jax.tree.leaves(PARAMS), strict=True):
        expected = torch.tensor(np.asarray(theirs)).bfloat16().view(torch.int16).numpy()
        np.testing.assert_array_equal(np.asarray(ours).view(np.int16), expected)
