"""Random models that tell a right network from a wrong one; no torch is needed for them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_llama3 import Config, Params, RopeScaling, abstract_params
from jax_llama3.model.params import named_leaves

ATOL = 1e-3  # of float32 logits, which vary by about 1 in these models and by 3 in real ones

LLAMA_3_1 = RopeScaling(8.0, 1.0, 4.0, 64)
LLAMA_3_2 = RopeScaling(32.0, 1.0, 4.0, 64)

TINY = Config(
    vocab_size=101,
    dim=48,
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    head_dim=16,
    ffn_dim=88,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=LLAMA_3_1,
    max_seq_len=512,
)


def replace(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, **changes)


def sharp_params(seed: int, config: Config) -> Params:
    """Random weights whose attention scores have a standard deviation near 2.

    With the usual small weights attention is nearly uniform and a wrong angle changes nothing.
    Norm weights vary too, and the embedding is small enough that a wrong eps shows; where it is the
    output matrix as well, the last norm makes up for it, so that logits always vary by about 1.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape)
            if name == "norm" and config.tie_embeddings:
                values = values / 0.05
        else:
            fan_in = math.prod(shape[1:]) if name.endswith("wo") else shape[-1]
            values = rng.standard_normal(shape) / math.sqrt(fan_in)
            values *= {"embedding": 0.05, "wq": 1.4, "wk": 1.4}.get(name.split(".")[-1], 1)
        return jnp.asarray(values, jnp.float32)

    abstract = abstract_params(config, jnp.float32)
    leaves = [draw(name, leaf.shape) for name, leaf in named_leaves(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)
