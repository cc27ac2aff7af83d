"""The weight tree: its names, its size, and configs that cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import TINY, replace

from jax_llama3 import Config, RopeScaling, abstract_params, count_params, init_params
from jax_llama3.bench.cost import cache_bytes_per_token
from jax_llama3.model.config import config_from_dict, config_to_dict
from jax_llama3.model.params import named_leaves

LLAMA_3_8B = Config(
    vocab_size=128256,
    dim=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn_dim=14336,
    norm_eps=1e-5,
    rope_theta=500000.0,
    max_seq_len=8192,
)


def test_llama_3_8b_has_its_published_size() -> None:
    assert count_params(LLAMA_3_8B) == 8_030_261_248
    assert cache_bytes_per_token(LLAMA_3_8B, 2) == 131_072


def test_names_are_key_paths_in_tree_order() -> None:
    names = [name for name, _ in named_leaves(abstract_params(TINY, jnp.bfloat16))]
    assert names[:3] == ["embedding", "layers.0.attn_norm", "layers.0.wq"]
    assert names[-2:] == ["norm", "output"]
    assert len(names) == len(set(names)) == 3 + 9 * TINY.n_layers


def test_random_weights_have_the_shapes_and_spread_they_should() -> None:
    params = init_params(jax.random.key(0), TINY, jnp.bfloat16)
    for (name, leaf), (_, shape) in zip(
        named_leaves(params), named_leaves(abstract_params(TINY, jnp.bfloat16)), strict=True
    ):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        fan_in = np.prod(leaf.shape[1:]) if name.endswith("wo") else leaf.shape[-1]
        expected = 0 if leaf.ndim == 1 else fan_in**-0.5
        assert np.std(np.asarray(leaf, np.float32)) == pytest.approx(expected, rel=0.1)


def test_a_config_is_hashable_and_survives_json() -> None:
    assert config_from_dict(config_to_dict(TINY)) == TINY
    assert hash(TINY) == hash(dataclasses.replace(TINY))
    for values in ({}, {**config_to_dict(TINY), "extra": 1}):
        with pytest.raises(ValueError, match="missing or unknown"):
            config_from_dict(values)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 0},
        {"n_layers": -1},
        {"n_kv_heads": 4},
        {"head_dim": 15},
        {"norm_eps": 0.0},
        {"rope_theta": float("nan")},
        {"rope_theta": float("inf")},
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=name):
        replace(TINY, **change)


def test_a_scaling_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="must exceed"):
        RopeScaling(8.0, 4.0, 4.0, 64)
