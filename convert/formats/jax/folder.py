"""A converted folder of our own as a source, for what goes back to other formats."""

from pathlib import Path

import numpy as np

from jax_llama3.checkpoint.format import (
    abstract_stored,
    holds_quantized,
    read_config,
    read_model_manifest,
    read_tokenizer,
)
from jax_llama3.checkpoint.shards import open_shards
from jax_llama3.model.params import named_leaves
from jax_llama3.text.tokenizer import Tokenizer

from ...source import Source, TensorInfo, source_file
from ...table import flat_shape
from ..safetensors_rows import row_reader


def open_unquantized(folder: Path) -> tuple[Source, Tokenizer | None]:
    """`open_jax` for what goes to another format: int8 matrices are refused."""
    source, tokenizer = open_jax(folder)
    refuse_quantized(folder, source.tensors)
    return source, tokenizer


def refuse_quantized(folder: Path, tensors: dict) -> None:
    """Raise ValueError if the tensors of a converted folder are those of a quantised model."""
    if holds_quantized(tensors):
        raise ValueError(f"{folder} is quantised; convert the source again without --quantize")


def open_jax(folder: Path) -> tuple[Source, Tokenizer | None]:
    """The source, whose tensors have our names and two-dimensional shapes, and the tokenizer."""
    manifest = read_model_manifest(folder, "name a converted model")
    config = read_config(folder)
    stored = manifest["tensors"]
    leaves = dict(named_leaves(abstract_stored(config, stored)))
    found = {
        name: tuple(handle.get_slice(name).get_shape())
        for handle in open_shards(folder, manifest).values()
        for name in handle.keys()  # noqa: SIM118  a handle is no mapping
    }
    if found != {name: leaf.shape for name, leaf in leaves.items()} or set(stored) != set(found):
        raise ValueError(f"{folder}: its tensors are not those of its config")
    read_whole = row_reader({name: folder / entry["file"] for name, entry in stored.items()})
    flat = {name: _flat_shape(name, shape) for name, shape in found.items()}
    heights = {name: flat[name][0] // shape[0] for name, shape in found.items()}

    def read(name: str, start: int, stop: int) -> np.ndarray:
        height = heights[name]
        block = read_whole(name, start // height, stop // height)
        return block.reshape(stop - start, *flat[name][1:])

    source = Source(
        kind="jax",
        config=config,
        tensors={name: TensorInfo(shape, stored[name]["dtype"]) for name, shape in flat.items()},
        read=read,
        texts={},
        files=[
            source_file(folder / name, sha256=entry["sha256"])
            for name, entry in manifest["files"].items()
        ],
        decisions=[],
    )
    return source, read_tokenizer(folder, manifest)


def _flat_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`flat_shape`, for int8 values too; a scale stays as it is."""
    if name.endswith(".scale"):
        return shape
    return flat_shape(name.removesuffix(".values"), shape)
