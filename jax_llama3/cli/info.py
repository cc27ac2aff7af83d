"""What a converted model is and what it needs, from its small files alone."""

import collections
import math
from pathlib import Path

import jax.numpy as jnp

from ..bench.cost import cache_bytes_per_token
from ..checkpoint.format import read_config, read_tokenizer
from ..model.config import Config
from ..model.params import count_params

_MEMORIES = (8, 16, 24, 48, 80, 141)  # gigabytes that devices come with


def describe(folder: Path, manifest: dict) -> str:
    """A table for people: architecture, size, cache, tokenizer, and what fits in which memory."""
    config = read_config(folder)
    rows = [
        ("folder", str(folder)),
        ("source", manifest["source"]["kind"]),
        ("layers", f"{config.n_layers} of dim {config.dim}, feed-forward {config.ffn_dim}"),
        (
            "heads",
            f"{config.n_heads} over {config.n_kv_heads} key/value heads of {config.head_dim}",
        ),
        ("vocabulary", f"{config.vocab_size:,}{', tied' if config.tie_embeddings else ''}"),
        ("RoPE", _rope(config)),
        ("context", f"{config.max_seq_len:,} tokens"),
        ("parameters", f"{count_params(config):,}"),
        ("stored as", _stored(manifest)),
        ("weights", _per_dtype(count_params(config))),
        ("cache/token", _per_dtype(cache_bytes_per_token(config, 1))),
        ("tokenizer", _tokenizer(folder, manifest)),
    ]
    lines = [f"{name:<12} {value}" for name, value in rows]
    return "\n".join([*lines, "", *_fits(config)])


def _rope(config: Config) -> str:
    text = f"theta {config.rope_theta:g}"
    if (scaling := config.rope_scaling) is None:
        return text
    return f"{text}, scaled {scaling.factor:g}x beyond {scaling.original_max_seq_len:,} tokens"


def _stored(manifest: dict) -> str:
    sizes: collections.Counter[str] = collections.Counter()
    for entry in manifest["tensors"].values():
        itemsize = jnp.dtype(entry["dtype"]).itemsize
        sizes[entry["dtype"]] += math.prod(entry["shape"]) * itemsize
    return ", ".join(f"{dtype} {_bytes(size)}" for dtype, size in sizes.items())


def _per_dtype(numbers: int) -> str:
    return f"float32 {_bytes(4 * numbers)}, bfloat16 {_bytes(2 * numbers)}"


def _tokenizer(folder: Path, manifest: dict) -> str:
    tokenizer = read_tokenizer(folder, manifest)
    if tokenizer is None:
        return "none"
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    if tokenizer.chat_format is not None and not tokenizer.chat_template:
        template = f"chat format {tokenizer.chat_format}"
    stops = ", ".join(map(str, tokenizer.stop_ids)) or "none"
    return f"{tokenizer.vocabulary.size:,} tokens, {template}, stop ids {stops}"


def _fits(config: Config) -> list[str]:
    """For every memory and dtype, how many tokens of cache fit beside the weights."""
    lines = [f"{'memory':<12} {'float32':>22} {'bfloat16':>22}"]
    for gigabytes in _MEMORIES:
        cells = []
        for itemsize in (4, 2):
            # A tenth stays free for activations and the runtime.
            room = 0.9e9 * gigabytes - count_params(config) * itemsize
            tokens = int(room / cache_bytes_per_token(config, itemsize))
            cells.append(f"{tokens:,} cached tokens" if tokens > 0 else "weights do not fit")
        lines.append(f"{f'{gigabytes} GB':<12} {cells[0]:>22} {cells[1]:>22}")
    return lines


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number} B"
