"""The converter: a table from source names to ours, checked whole before a weight is read."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jax_llama3.checkpoint import cast
from jax_llama3.config import Config
from jax_llama3.params import Params, abstract_params, named_leaves

from .layout import Layout, half_split, reshaped


class TensorInfo(NamedTuple):
    """A source tensor as its header describes it."""

    shape: tuple[int, ...]
    dtype: str  # as numpy names what `Source.read` returns


class Source(NamedTuple):
    """A checkpoint of any kind, opened: headers read, weights not."""

    kind: str  # "huggingface" or "gguf"
    config: Config
    tensors: dict[str, TensorInfo]
    read: Callable[[str], np.ndarray]
    texts: dict[str, bytes]  # tokenizer files in our format
    paths: list[Path]  # the files that were used
    decisions: list[str]


class Rule(NamedTuple):
    """One row of the table: our tensor, the source's name for it, and the layout in between."""

    target: str
    source: str
    layout: Layout


_HUGGINGFACE = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "wq": "model.layers.{}.self_attn.q_proj.weight",
    "wk": "model.layers.{}.self_attn.k_proj.weight",
    "wv": "model.layers.{}.self_attn.v_proj.weight",
    "wo": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "w_gate": "model.layers.{}.mlp.gate_proj.weight",
    "w_up": "model.layers.{}.mlp.up_proj.weight",
    "w_down": "model.layers.{}.mlp.down_proj.weight",
}
_GGUF = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "output": "output.weight",
    "attn_norm": "blk.{}.attn_norm.weight",
    "wq": "blk.{}.attn_q.weight",
    "wk": "blk.{}.attn_k.weight",
    "wv": "blk.{}.attn_v.weight",
    "wo": "blk.{}.attn_output.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "w_gate": "blk.{}.ffn_gate.weight",
    "w_up": "blk.{}.ffn_up.weight",
    "w_down": "blk.{}.ffn_down.weight",
}
NAMES = {"huggingface": _HUGGINGFACE, "gguf": _GGUF}
_INTERLEAVED = {"gguf"}


def rules(kind: str, config: Config) -> list[Rule]:
    """The table of one kind of source, a row for every tensor of the tree, in tree order."""
    table = []
    for target, _ in named_leaves(abstract_params(config, np.float32)):
        prefix, _, leaf = target.rpartition(".")
        source = NAMES[kind][leaf].format(prefix.removeprefix("layers."))
        swap = kind in _INTERLEAVED and leaf in ("wq", "wk")
        table.append(Rule(target, source, half_split if swap else reshaped))
    return table


def resolve_tie(source: Source) -> Source:
    """Settle whether the output matrix is the embedding, by the tensors themselves.

    A separate one that equals the embedding bit for bit is not kept; one that differs although the
    config says tied is refused.
    """
    names = NAMES[source.kind]
    embedding, output = names["embedding"], names["output"]
    if output not in source.tensors or embedding not in source.tensors:
        return source
    same = source.tensors[embedding] == source.tensors[output] and np.array_equal(
        source.read(embedding).view(np.uint8), source.read(output).view(np.uint8)
    )
    if not same and source.config.tie_embeddings:
        raise ValueError(f"the config ties the embeddings, but {output} differs from {embedding}")
    if not same:
        return source
    tensors = {name: info for name, info in source.tensors.items() if name != output}
    config = dataclasses.replace(source.config, tie_embeddings=True)
    note = f"{output} equals {embedding} bit for bit and is stored once"
    return source._replace(tensors=tensors, config=config, decisions=[*source.decisions, note])


def plan(source: Source, dtype: str | None) -> tuple[list[Rule], Params]:
    """The table and the tree it fills; every name and shape that is off is reported together.

    `dtype` None keeps each tensor's own.
    """
    if source.config.n_layers > len(source.tensors):
        # Refused before a tree of that many layers is built.
        raise ValueError(
            f"the config says {source.config.n_layers} layers, the files hold "
            f"{len(source.tensors)} tensors"
        )
    table = rules(source.kind, source.config)
    abstract = abstract_params(source.config, np.float32)
    errors = []
    leaves = []
    for rule, (_, leaf) in zip(table, named_leaves(abstract), strict=True):
        info = source.tensors.get(rule.source)
        if info is None:
            errors.append(f"{rule.source} is missing")
            continue
        flat = _flat_shape(rule.target, leaf.shape)
        if info.shape != flat:
            errors.append(
                f"{rule.source} has shape {list(info.shape)}, the config says {list(flat)}"
            )
        leaves.append(jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype or info.dtype)))
    unused = set(source.tensors) - {rule.source for rule in table}
    errors += [f"{name} has no place in the model" for name in sorted(unused)]
    if errors:
        more = f" (and {len(errors) - 8} more)" if len(errors) > 8 else ""
        raise ValueError("; ".join(errors[:8]) + more)
    return table, jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def convert_tensors(
    source: Source, table: list[Rule], abstract: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of the tree in order, read, laid out, cast and checked to be finite."""
    for rule, (name, leaf) in zip(table, named_leaves(abstract), strict=True):
        array = rule.layout(source.read(rule.source), leaf.shape)
        yield name, cast(name, array, leaf.dtype)


def _flat_shape(target: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The two-dimensional shape that PyTorch and GGUF give a matrix whose heads we split out."""
    if len(shape) < 3:
        return shape
    if target.endswith("wo"):
        return shape[0], shape[1] * shape[2]
    return shape[0] * shape[1], shape[2]
