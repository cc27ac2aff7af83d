"""What a converted folder holds: a config, weights of its shapes, and perhaps a tokenizer."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..model.config import Config, config_from_dict
from ..model.params import Params, abstract_params, named_leaves
from ..model.quantization import quantize
from ..text.tokenizer import GENERATION, JSON, MODEL, TEMPLATE, Tokenizer, tokenizer_from_files
from .manifest import CONFIG, FORMAT, read_json, read_manifest

EXPORT = "export"  # the key in a manifest that names the other format of an exported folder
DTYPES = ("float32", "bfloat16", "float16")
_TEXTS = (JSON, MODEL, GENERATION, TEMPLATE)


class Model(NamedTuple):
    """What `load` returns. `tokenizer` is None if the source had none: such a model takes ids only."""

    config: Config
    params: Params
    tokenizer: Tokenizer | None


def is_export(manifest: dict) -> bool:
    """Whether a folder was written in another format, for other programs: it is no model of ours."""
    return EXPORT in manifest


def read_model_manifest(folder: Path, advice: str = "convert it with to-jax first") -> dict:
    """The manifest of a model; a folder in another format raises ValueError, which ends in `advice`."""
    manifest = read_manifest(folder)
    if is_export(manifest):
        raise ValueError(f"{folder} is in the {manifest[EXPORT]} format; {advice}")
    return manifest


def read_config(folder: Path) -> Config:
    """The architecture of a converted folder; a damaged config.json raises ValueError."""
    values = read_json(folder / CONFIG)
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"{folder / CONFIG}: not of format {FORMAT!r}")
    try:
        return config_from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


def read_tokenizer(folder: Path, manifest: dict) -> Tokenizer | None:
    """The tokenizer of a converted folder, None without one; damaged files raise ValueError."""
    texts = {name: (folder / name).read_bytes() for name in _TEXTS if name in manifest["files"]}
    return tokenizer_from_files(texts, read_config(folder).vocab_size) if texts else None


def holds_quantized(tensors: dict) -> bool:
    """Whether the tensors of a manifest are those of a quantised model."""
    return "embedding.values" in tensors


def abstract_stored(config: Config, tensors: dict, dtype: Any = None) -> Params:
    """The tree of `jax.ShapeDtypeStruct` that the manifest's tensors form.

    All leaves have `dtype`, by default that of the last norm. The matrices are `Quantized` if the
    tensors are a quantised model's.
    """
    stored = tensors["norm"]["dtype"] if "norm" in tensors else np.float32
    abstract = abstract_params(config, dtype or stored)
    return jax.eval_shape(quantize, abstract) if holds_quantized(tensors) else abstract


def expected_leaves(abstract: Params, tensors: dict) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Names and leaves of the tree, after a check that the manifest holds exactly these."""
    leaves = named_leaves(abstract)
    if wrong := sorted({name for name, _ in leaves} ^ set(tensors)):
        raise ValueError(f"tensors missing or unknown: {', '.join(wrong[:5])}")
    for name, _ in leaves:
        check_dtype(name, tensors[name]["dtype"])
    return leaves


def check_dtype(name: str, dtype: Any) -> None:
    """Refuse a dtype that a tensor of this name cannot have."""
    field = name.rpartition(".")[2]
    allowed = {"values": ("int8",), "scale": ("float32",)}.get(field, DTYPES)
    if str(dtype) not in allowed:
        raise ValueError(f"{name}: dtype {dtype} is not supported, only {', '.join(allowed)}")
