"""Bugs of weights and configs that a converted folder can hold, and the activation that shows each first."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from checkpoints import META
from random_models import LLAMA_3_2, replace

from jax_llama3 import Layer, Model

LAST = META.n_layers - 1
Change = Callable[[Model], Model]


class Plant(NamedTuple):
    """How a model is changed, and the first activation that `compare` must name."""

    change: Change
    first: str


def in_layers(change: Callable[[Layer], dict], *indices: int) -> Change:
    """Change the weights of these layers."""

    def planted(model: Model) -> Model:
        layers = [
            layer._replace(**change(layer)) if index in indices else layer
            for index, layer in enumerate(model.params.layers)
        ]
        return model._replace(params=model.params._replace(layers=tuple(layers)))

    return planted


def in_params(change: Callable[[Model], dict]) -> Change:
    return lambda model: model._replace(params=model.params._replace(**change(model)))


def in_config(**changes: object) -> Change:
    return lambda model: model._replace(config=replace(model.config, **changes))


def interleaved(weight: jax.Array) -> jax.Array:
    """The rows of each head, [heads H D], in Meta's order."""
    heads, head_dim, dim = weight.shape
    return weight.reshape(heads, 2, head_dim // 2, dim).swapaxes(1, 2).reshape(weight.shape)


def tiled(layer: Layer) -> jax.Array:
    """Query heads in the order that suits keys repeated as 0 1 0 1, not as 0 0 1 1."""
    groups = layer.wq.reshape(layer.wk.shape[0], -1, *layer.wq.shape[1:])
    return groups.swapaxes(0, 1).reshape(layer.wq.shape)


def transposed(weight: jax.Array) -> jax.Array:
    """A matrix taken for (in, out)."""
    dim = round(weight.size**0.5)
    return weight.reshape(dim, dim).T.reshape(weight.shape)


def halves_swapped(weight: jax.Array, axis: int) -> jax.Array:
    """Two shards joined in the wrong order."""
    return jnp.roll(weight, weight.shape[axis] // 2, axis)


def truncated(model: Model) -> Model:
    """Cut to bfloat16, not rounded."""

    def cut(leaf: jax.Array) -> jax.Array:
        bits = np.asarray(leaf).view(np.uint32) & np.uint32(0xFFFF0000)
        return jnp.asarray(bits.view(np.float32)).astype(jnp.bfloat16)

    return model._replace(params=jax.tree.map(cut, model.params))


def taken_for_tied(model: Model) -> Model:
    config = replace(model.config, tie_embeddings=True)
    return model._replace(config=config, params=model.params._replace(output=None))


PLANTS = {
    "k rows of one layer in Meta's order": Plant(
        in_layers(lambda w: {"wk": interleaved(w.wk)}, 1), "layers.1.attn.k"
    ),
    "q rows of one layer in Meta's order": Plant(
        in_layers(lambda w: {"wq": interleaved(w.wq)}, 1), "layers.1.attn.q"
    ),
    "q and k rows of all layers in Meta's order": Plant(
        in_layers(lambda w: {"wq": interleaved(w.wq), "wk": interleaved(w.wk)}, *range(LAST + 1)),
        "layers.0.attn.q",
    ),
    "v rows reordered like k's": Plant(
        in_layers(lambda w: {"wv": interleaved(w.wv)}, 0), "layers.0.attn.v"
    ),
    "query heads in the order of tiled keys": Plant(
        in_layers(lambda w: {"wq": tiled(w)}, 0), "layers.0.attn.q"
    ),
    "key heads in reverse": Plant(in_layers(lambda w: {"wk": w.wk[::-1]}, 1), "layers.1.attn.k"),
    "k and v swapped": Plant(in_layers(lambda w: {"wk": w.wv, "wv": w.wk}, 1), "layers.1.attn.k"),
    "wq transposed": Plant(in_layers(lambda w: {"wq": transposed(w.wq)}, 1), "layers.1.attn.q"),
    "wo transposed": Plant(in_layers(lambda w: {"wo": transposed(w.wo)}, 1), "layers.1.attn.out"),
    "shards of wv joined in the wrong order": Plant(
        in_layers(lambda w: {"wv": halves_swapped(w.wv, 0)}, 1), "layers.1.attn.v"
    ),
    "shards of wo joined in the wrong order": Plant(
        in_layers(lambda w: {"wo": halves_swapped(w.wo, 1)}, 1), "layers.1.attn.out"
    ),
    "shards of w_down joined in the wrong order": Plant(
        in_layers(lambda w: {"w_down": halves_swapped(w.w_down, 1)}, 0), "layers.0.mlp.out"
    ),
    "gate and up swapped": Plant(
        in_layers(lambda w: {"w_gate": w.w_up, "w_up": w.w_gate}, 1), "layers.1.mlp.gate"
    ),
    "the two norms of a layer swapped": Plant(
        in_layers(lambda w: {"attn_norm": w.ffn_norm, "ffn_norm": w.attn_norm}, 1),
        "layers.1.attn.q",
    ),
    "norm stored as weight - 1": Plant(
        in_layers(lambda w: {"ffn_norm": w.ffn_norm - 1}, 1), "layers.1.mlp.gate"
    ),
    "layers in reverse": Plant(
        in_params(lambda model: {"layers": model.params.layers[::-1]}), "layers.0.attn.q"
    ),
    "one layer twice": Plant(
        in_params(lambda model: {"layers": model.params.layers[:1] * (LAST + 1)}),
        f"layers.{LAST}.attn.q",
    ),
    "embedding rows one off": Plant(
        in_params(lambda model: {"embedding": jnp.roll(model.params.embedding, 1, 0)}), "embed"
    ),
    "last norm left at one": Plant(
        in_params(lambda model: {"norm": jnp.ones_like(model.params.norm)}), "final_norm"
    ),
    "output rows one off": Plant(
        in_params(lambda model: {"output": jnp.roll(model.params.output, 1, 0)}), "logits"
    ),
    "an untied model taken for tied": Plant(taken_for_tied, "logits"),
    "truncated to bfloat16, not rounded": Plant(truncated, "embed"),
    "theta of another model": Plant(in_config(rope_theta=50000.0), "layers.0.attn.q"),
    "no scaling": Plant(in_config(rope_scaling=None), "layers.0.attn.q"),
    "scaling of another model": Plant(in_config(rope_scaling=LLAMA_3_2), "layers.0.attn.q"),
    "eps 1e-6 for 1e-5": Plant(in_config(norm_eps=1e-6), "layers.0.attn.q"),
}
