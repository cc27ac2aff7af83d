"""The weights: a tree of NamedTuples whose abstract form is the contract for every other module."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .config import Config


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


# The axes of every weight, in the dimension letters of the core.
AXES: dict[str, str] = {
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


def contracted_axes(name: str) -> int:
    """How many trailing axes of a weight a product sums over; 0 for a norm.

    `name` may have a path before it, such as "layers.3.wo".
    """
    axes = AXES[name.rpartition(".")[2]]
    if len(axes) == 1:
        return 0
    return 2 if axes.endswith("NH") else 1


def abstract_params(config: Config, dtype: Any) -> Params:
    """The tree of `jax.ShapeDtypeStruct` that a model of this config has."""

    def leaf(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    c = config
    layer = Layer(
        attn_norm=leaf(c.dim),
        wq=leaf(c.n_heads, c.head_dim, c.dim),
        wk=leaf(c.n_kv_heads, c.head_dim, c.dim),
        wv=leaf(c.n_kv_heads, c.head_dim, c.dim),
        wo=leaf(c.dim, c.n_heads, c.head_dim),
        ffn_norm=leaf(c.dim),
        w_gate=leaf(c.ffn_dim, c.dim),
        w_up=leaf(c.ffn_dim, c.dim),
        w_down=leaf(c.dim, c.ffn_dim),
    )
    output = None if c.tie_embeddings else leaf(c.vocab_size, c.dim)
    return Params(leaf(c.vocab_size, c.dim), (layer,) * c.n_layers, leaf(c.dim), output)


def init_params(key: jax.Array, config: Config, dtype: Any) -> Params:
    """Random weights: norms are one, matrices normal with variance 1 / fan_in. The key is consumed."""
    leaves, treedef = jax.tree.flatten(abstract_params(config, dtype))
    names = [name for name, _ in named_leaves(abstract_params(config, dtype))]
    keys = jax.random.split(key, len(leaves))
    new = []
    for name, leaf, leaf_key in zip(names, leaves, keys, strict=True):
        if len(leaf.shape) == 1:
            new.append(jnp.ones(leaf.shape, leaf.dtype))
            continue
        fan_in = math.prod(leaf.shape[1:]) if name.endswith("wo") else leaf.shape[-1]
        values = jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        new.append(values * jnp.asarray(fan_in**-0.5, leaf.dtype))
    return jax.tree.unflatten(treedef, new)


def count_params(config: Config) -> int:
    """How many numbers the weights hold; a tied embedding counts once."""
    leaves = jax.tree.leaves(abstract_params(config, jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Every leaf with its key path: `embedding`, `layers.0.wq`, ..., in tree order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
