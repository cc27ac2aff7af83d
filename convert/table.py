"""The converter: a table of names and layouts, checked whole before a weight is read."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from jax_llama3.checkpoint.casting import cast
from jax_llama3.checkpoint.stream import AHEAD, BLOCK_BYTES, READ_BACK_BYTES, Tensor
from jax_llama3.model.config import Config
from jax_llama3.model.params import AXES, abstract_params, contracted_axes, named_leaves
from jax_llama3.model.quantization import quantize_array

from .layout import Layout, half_split, interleaved, unchanged
from .source import Source, TensorInfo, refuse_all


class Rule(NamedTuple):
    """One row of the table: our tensor, another format's name for it, and the layouts in between."""

    ours: str
    theirs: str
    read: Layout  # theirs to ours
    write: Layout  # ours to theirs


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
_META = {
    "embedding": "tok_embeddings.weight",
    "norm": "norm.weight",
    "output": "output.weight",
    "attn_norm": "layers.{}.attention_norm.weight",
    "wq": "layers.{}.attention.wq.weight",
    "wk": "layers.{}.attention.wk.weight",
    "wv": "layers.{}.attention.wv.weight",
    "wo": "layers.{}.attention.wo.weight",
    "ffn_norm": "layers.{}.ffn_norm.weight",
    "w_gate": "layers.{}.feed_forward.w1.weight",
    "w_up": "layers.{}.feed_forward.w3.weight",
    "w_down": "layers.{}.feed_forward.w2.weight",
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
# The config's key that says whether the output is the embedding; a GGUF file says it by its tensors.
_TIE_KEYS = {"huggingface": "tie_word_embeddings", "meta": "tied_embeddings"}
NAMES = {"huggingface": _HUGGINGFACE, "meta": _META, "gguf": _GGUF}
_INTERLEAVED = {"meta", "gguf"}


def rules(kind: str, config: Config) -> list[Rule]:
    """The table of one format, a row for every tensor of the tree, in tree order."""
    table = []
    for ours, _ in named_leaves(abstract_params(config, np.float32)):
        prefix, _, leaf = ours.rpartition(".")
        theirs = NAMES[kind][leaf].format(prefix.removeprefix("layers."))
        swap = kind in _INTERLEAVED and leaf in ("wq", "wk")
        layouts = (half_split, interleaved) if swap else (unchanged, unchanged)
        table.append(Rule(ours, theirs, *layouts))
    return table


def resolve_tie(source: Source) -> Source:
    """The source with `tie_embeddings` as the tensors themselves say it.

    A separate one that equals the embedding bit for bit is not kept; one that differs although the
    config says tied is refused.
    """
    names = NAMES[source.kind]
    embedding, output = names["embedding"], names["output"]
    if output not in source.tensors or embedding not in source.tensors:
        return source
    same = _are_equal(source, embedding, output)
    if not same and source.config.tie_embeddings:
        key = _TIE_KEYS[source.kind]
        raise ValueError(
            f"{output} differs from {embedding}, but the config ties them: set {key} to false to keep "
            f"{output}, or delete {output} from the file"
        )
    if not same:
        return source
    tensors = {name: info for name, info in source.tensors.items() if name != output}
    config = dataclasses.replace(source.config, tie_embeddings=True)
    note = f"{output} equals {embedding} bit for bit and is stored once"
    return source._replace(tensors=tensors, config=config, decisions=[*source.decisions, note])


def _are_equal(source: Source, left: str, right: str) -> bool:
    info = source.tensors[left]
    if info != source.tensors[right] or len(info.shape) != 2 or 0 in info.shape:
        return False
    return all(
        np.array_equal(
            source.read(left, start, stop).view(np.uint8),
            source.read(right, start, stop).view(np.uint8),
        )
        for start, stop in _spans(info, 0, info.shape[0], 1)
    )


def plan(source: Source, dtype: str | None, *, quantize: bool = False) -> list[Tensor]:
    """The tensors of our tree, in tree order, whose blocks are read from the source when written.

    `dtype` None keeps each tensor's own, or what the source says it is kept as. With `quantize` it is
    that of the norms alone, and every matrix becomes int8 values and a float32 scale, from the source's
    own numbers. Tensors that are missing, of another shape or not of the model raise one ValueError,
    which names them all.
    """
    config = source.config
    if config.n_layers > len(source.tensors):
        # Refused before a tree of that many layers is built.
        raise ValueError(
            f"the config says {config.n_layers} layers, the files hold "
            f"{len(source.tensors)} tensors"
        )
    table = rules(source.kind, config)
    abstract = named_leaves(abstract_params(config, np.float32))
    errors = []
    tensors = []
    for rule, (_, leaf) in zip(table, abstract, strict=True):
        info = source.tensors.get(rule.theirs)
        if info is None:
            errors.append(f"{rule.theirs} is missing{_tie_hint(source.kind, rule.ours)}")
        elif info.shape != (flat := flat_shape(rule.ours, leaf.shape)):
            shapes = f"has shape {list(info.shape)}, the config says {list(flat)}"
            errors.append(f"{rule.theirs} {shapes}")
        elif quantize and len(info.shape) > 1:
            tensors += _quantized(source, rule, leaf.shape)
        else:
            kept = np.dtype(dtype or info.kept or info.dtype)
            tensors.append(_to_ours(source, rule, leaf.shape, kept))
    unused = set(source.tensors) - {rule.theirs for rule in table}
    errors += [f"{name} has no place in the model" for name in sorted(unused)]
    refuse_all(errors)
    return tensors


def _tie_hint(kind: str, ours: str) -> str:
    key = _TIE_KEYS.get(kind)
    return f" (if it is the embedding, set {key} to true)" if key and ours == "output" else ""


def _to_ours(source: Source, rule: Rule, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    return Tensor(rule.ours, shape, dtype, lambda: _rows(source, rule, dtype))


def _quantized(source: Source, rule: Rule, shape: tuple[int, ...]) -> list[Tensor]:
    """The values and the scale; for each of the two the source is read once.

    A row of the source is an output channel, so the scales of its rows follow each other as ours do.
    """

    def blocks(field: str) -> Iterator[np.ndarray]:
        for rows in _rows(source, rule, np.dtype(np.float32)):
            yield getattr(quantize_array(rows, 1, np), field)

    channels = shape[: -contracted_axes(rule.ours)]
    return [
        Tensor(f"{rule.ours}.values", shape, np.dtype(np.int8), partial(blocks, "values")),
        Tensor(f"{rule.ours}.scale", channels, np.dtype(np.float32), partial(blocks, "scale")),
    ]


def _rows(source: Source, rule: Rule, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The elements of a tensor of ours in order, as blocks of rows."""
    info, head_dim = source.tensors[rule.theirs], source.config.head_dim
    for start, stop in _spans(info, 0, info.shape[0], _unit(rule.ours, head_dim)):
        rows = rule.read(source.read(rule.theirs, start, stop), head_dim)
        yield cast(rule.ours, rows, dtype)


def exported_tensor(
    source: Source, rule: Rule, rows: range, columns: slice = slice(None)
) -> Tensor:
    """Rows and columns of a tensor of ours, under another format's name and in its layout."""
    info, head_dim = source.tensors[rule.ours], source.config.head_dim
    width = [len(range(info.shape[1])[columns])] if len(info.shape) == 2 else []

    def blocks() -> Iterator[np.ndarray]:
        for start, stop in _spans(info, rows.start, rows.stop, _unit(rule.ours, head_dim)):
            read = rule.write(source.read(rule.ours, start, stop), head_dim)
            yield read[:, columns] if width else read

    return Tensor(rule.theirs, (len(rows), *width), np.dtype(info.dtype), blocks)


def buffer_bytes(source: Source, tensors: list[Tensor]) -> int:
    """The most bytes of memory that writing these tensors of ours takes, besides the program itself.

    Twice READ_BACK_BYTES are for what is being read back and for what waits for it. Of the largest
    block there are the rows as read, as joined and as laid out, and AHEAD + 3 finished ones.
    """
    table = {rule.ours: rule.theirs for rule in rules(source.kind, source.config)}
    largest = 0
    for tensor in tensors:
        info = source.tensors[table[tensor.name]]
        unit = _unit(tensor.name, source.config.head_dim)
        start, stop = next(_spans(info, 0, info.shape[0], unit))
        numbers = (stop - start) * math.prod(info.shape[1:])
        read = numbers * np.dtype(info.dtype).itemsize
        largest = max(largest, 3 * read + (AHEAD + 3) * numbers * tensor.dtype.itemsize)
    return 2 * READ_BACK_BYTES + largest


def flat_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that other formats give a weight: of a matrix (out, in), a norm's as it is.

    Our wq [N H D] is (N H, D) there, our wo [D N H] is (D, N H).
    """
    contracted = contracted_axes(ours)
    if not contracted:
        return shape
    return math.prod(shape[:-contracted]), math.prod(shape[-contracted:])


def _unit(ours: str, head_dim: int) -> int:
    """How many rows belong together: those of one head where the rows are heads."""
    return head_dim if AXES[ours.rpartition(".")[2]].endswith("HD") else 1


def _spans(info: TensorInfo, first: int, last: int, unit: int) -> Iterator[tuple[int, int]]:
    """The rows from `first` to `last` in blocks of about BLOCK_BYTES, in whole units."""
    row_bytes = info.nbytes // info.shape[0]
    step = max(BLOCK_BYTES // (row_bytes * unit), 1) * unit
    for start in range(first, last, step):
        yield start, min(start + step, last)
