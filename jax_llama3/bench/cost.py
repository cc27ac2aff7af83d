"""What a forward pass costs: bytes of weights and floating point operations."""

import math

import jax

from ..model.config import Config
from ..model.params import Params, abstract_params


def weight_bytes(params: Params) -> int:
    """Bytes of the weights that one forward pass reads: all, but for an untied embedding.

    Of that one only the rows of the tokens are read. `params` may be abstract.
    """
    read = params if params.output is None else params._replace(embedding=None)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(read))


def forward_flops(config: Config, tokens: int, depth: int, logits: int) -> int:
    """Operations, a multiplication and an addition each counted, of one row's forward pass.

    `tokens` are new after `depth` cached ones, and `logits` of them get logits. Attention counts
    the pairs that the mask lets through; norms, RoPE, softmax and SiLU are left out.
    """
    matrices = sum(math.prod(leaf.shape) for leaf in _matrices(config))
    pairs = tokens * depth + tokens * (tokens + 1) // 2
    attention = 2 * config.n_layers * config.n_heads * config.head_dim * pairs
    return 2 * (tokens * matrices + attention + logits * config.vocab_size * config.dim)


def cache_bytes_per_token(config: Config, itemsize: int) -> int:
    """Bytes that one token of one row takes in the cache."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * itemsize


def _matrices(config: Config) -> list[jax.ShapeDtypeStruct]:
    layers = jax.tree.leaves(abstract_params(config, "float32").layers)
    return [leaf for leaf in layers if len(leaf.shape) > 1]
