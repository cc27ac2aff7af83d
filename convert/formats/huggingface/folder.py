"""A Hugging Face folder as a source: config.json, weights, tokenizer."""

import re
from pathlib import Path

from jax_llama3.checkpoint.manifest import read_json
from jax_llama3.model.config import Config

from ...source import Source, check_plain, source_file
from ..quantized.scheme import dequantized, quantization_of, readable_dtypes
from ..tokenizer import NO_TOKENIZER
from ..weight_files import (
    CONSOLIDATED,
    HUGGINGFACE,
    PYTORCH,
    FileSet,
    OnFile,
    not_read,
    open_weights,
)
from .config import parse_config
from .names import with_plain_names
from .tokenizer import huggingface_texts

_METAS_SHARD = re.compile(r"consolidated\.\d+\.pth")
_READ = (".json", ".safetensors", ".jinja", ".model")


def open_huggingface(folder: Path, on_file: OnFile = lambda file: None) -> Source:
    """Read the folder's config and the headers of its weights; what is off raises ValueError.

    `on_file` is called with each file whose header takes long to read.
    """
    for path in folder.iterdir():
        if path.suffix in _READ or path.name == "merges.txt":
            check_plain(path)
    files = [source_file(folder / "config.json")]
    config, values = _read_config(folder / "config.json")
    names, decisions = _weight_set(folder)
    weights = open_weights(folder, names, on_file, readable_dtypes(values))
    if names is PYTORCH and quantization_of(values) is not None:
        raise ValueError(
            f"{folder} holds quantised weights in {PYTORCH.single}; save them as safetensors"
        )
    weights = with_plain_names(folder, dequantized(folder, values, weights))
    texts, text_paths, notes = huggingface_texts(folder, values)
    decisions += notes
    if not texts:
        decisions.append(NO_TOKENIZER)
    return Source(
        kind="huggingface",
        config=config,
        tensors=weights.tensors,
        read=weights.read,
        texts=texts,
        files=[*files, *weights.files, *(source_file(path) for path in text_paths)],
        decisions=[*weights.decisions, *decisions],
    )


def _read_config(path: Path) -> tuple[Config, dict]:
    values = read_json(path)
    try:
        return parse_config(values), values
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _weight_set(folder: Path) -> tuple[FileSet, list[str]]:
    """The set of files that holds the weights, and notes on those beside it that are not read."""
    names = {path.name for path in folder.iterdir()}
    second = [name for name in names if _METAS_SHARD.fullmatch(name) or name.endswith(".gguf")]
    if second:
        raise ValueError(f"{folder} holds a second format, {min(second)}; move one away")
    safe = {HUGGINGFACE.single, HUGGINGFACE.listing} & names
    torch = {PYTORCH.single, PYTORCH.listing} & names
    if not safe and torch:
        return PYTORCH, []
    ignored = [min(torch)] if torch else []
    ignored += sorted(name for name in names if Path(name).match(CONSOLIDATED.pattern))[:1]
    return HUGGINGFACE, [not_read(name, min(safe)) for name in ignored if safe]
