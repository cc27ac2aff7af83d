"""The weights: a tree of NamedTuples whose abstract form is the contract for every other module."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .config import Config

# The axes of every weight, in the order in which they are stored: N H of wq and of wo are those of the
# heads, and what a product sums over stands last.
AXES = {
    "embedding": "VD",
    "attn_norm": "D",
    "wq": "NHD",
    "wk": "KHD",
    "wv": "KHD",
    "wo": "DNH",
    "ffn_norm": "D",
    "w_gate": "FD",
    "w_up": "FD",
    "w_down": "DF",
    "norm": "D",
    "output": "VD",
}


class Layer(NamedTuple):
    """One block. Matrices are (out, in), as PyTorch stores them, with the heads split out.

    `quantize` puts a `Quantized` in the place of every matrix.
    """

    attn_norm: Float[Array, " D"]
    wq: Float[Array, "N H D"]
    wk: Float[Array, "K H D"]
    wv: Float[Array, "K H D"]
    wo: Float[Array, "D N H"]
    ffn_norm: Float[Array, " D"]
    w_gate: Float[Array, "F D"]
    w_up: Float[Array, "F D"]
    w_down: Float[Array, "D F"]


class Params(NamedTuple):
    """A model's weights; `output` is None when the embedding serves as the output matrix."""

    embedding: Float[Array, "V D"]
    layers: tuple[Layer, ...]
    norm: Float[Array, " D"]
    output: Float[Array, "V D"] | None


def contracted_axes(name: str) -> int:
    """How many of a weight's last axes a product sums over: 2 for wo, 0 for norms, 1 for the others.

    `name` may be a key path, such as "layers.3.wo".
    """
    axes = AXES[name.rpartition(".")[2]]
    if len(axes) == 1:
        return 0
    return 2 if axes.endswith("NH") else 1


def abstract_params(config: Config, dtype: Any) -> Params:
    """The tree of `jax.ShapeDtypeStruct` that a model of this config has."""
    c = config
    sizes = {"V": c.vocab_size, "D": c.dim, "F": c.ffn_dim, "H": c.head_dim}
    sizes |= {"N": c.n_heads, "K": c.n_kv_heads}

    def leaf(name: str) -> Any:
        shape = tuple(sizes[letter] for letter in AXES[name])
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    layer = Layer(*map(leaf, Layer._fields))
    output = None if c.tie_embeddings else leaf("output")
    return Params(leaf("embedding"), (layer,) * c.n_layers, leaf("norm"), output)


def init_params(key: jax.Array, config: Config, dtype: Any) -> Params:
    """Random weights: norms are one, matrices normal with variance 1 / fan_in. The key is consumed."""
    abstract = abstract_params(config, dtype)
    named = named_leaves(abstract)
    keys = jax.random.split(key, len(named))
    leaves = [_init_leaf(key, name, leaf) for key, (name, leaf) in zip(keys, named, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _init_leaf(key: jax.Array, name: str, leaf: Any) -> jax.Array:
    contracted = contracted_axes(name)
    if not contracted:
        return jnp.ones(leaf.shape, leaf.dtype)
    fan_in = math.prod(leaf.shape[-contracted:])
    values = jax.random.normal(key, leaf.shape, leaf.dtype)
    return values * jnp.asarray(fan_in**-0.5, leaf.dtype)


def count_params(config: Config) -> int:
    """How many numbers the weights hold; a tied embedding counts once."""
    leaves = jax.tree.leaves(abstract_params(config, jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Every leaf with its key path: `embedding`, `layers.0.wq`, ..., in tree order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
