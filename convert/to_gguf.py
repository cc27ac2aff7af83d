"""A converted folder to one GGUF file of llama.cpp's."""

import os
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jax_llama3.checkpoint.casting import cast
from jax_llama3.checkpoint.format import EXPORT
from jax_llama3.checkpoint.receipt import check_file_output, write_file
from jax_llama3.checkpoint.stream import Tensor, array_tensor
from jax_llama3.model.config import Config

from .formats.gguf.file import decimal, rope_divisors
from .formats.gguf.token_fields import token_fields
from .formats.gguf.writer import GgufPart, gguf_output
from .formats.jax.folder import open_unquantized
from .source import Source, check_unchanged, hash_files, refuse_all
from .table import Rule, exported_tensor, rules
from .to_jax import refuse_overlap

DTYPES = ("f32", "f16", "bf16", "q8_0")
_FLOATS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_KINDS = {dtype.name: kind for kind, dtype in _FLOATS.items()}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama.cpp's numbers
_Q8_BLOCK, _Q8_BYTES = 32, 34
_Q8_LARGEST = 127 * 65504.0  # a block's scale is a float16
_ROPE_FREQS = "rope_freqs.weight"


def to_gguf(
    path: str | os.PathLike,
    file: str | os.PathLike,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the model in `path` as one file that llama.cpp loads, with a receipt beside it.

    `dtype` is that of the matrices, "f32", "f16", "bf16" or "q8_0"; by default each keeps its own.
    Norms are float32, as llama.cpp wants them. Int8 weights, and what the format cannot say, raise
    ValueError, an existing output FileExistsError.
    """
    if find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "to-gguf needs the package gguf: pip install 'jax_llama3[convert]'"
        )
    path, file = Path(path), Path(file)
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype {dtype!r} is not supported, only {', '.join(DTYPES)}")
    check_file_output(file, overwrite=overwrite)
    refuse_overlap(path, file)
    source, tokenizer = open_unquantized(path)
    try:
        tokens, decisions = token_fields(tokenizer, source.config.vocab_size)
        parts = [_part(source, rule, dtype) for rule in rules("gguf", source.config)]
        fields = {**_config_fields(source.config), **tokens}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    fields["general.name"] = os.fsencode(path.resolve().name).decode(errors="replace")
    fields["general.file_type"] = _FILE_TYPES[parts[0].kind]
    receipt = {
        "source": {"kind": "jax_llama3", "files": hash_files(source.files)},
        EXPORT: "gguf",
        "decisions": [f"dtype {dtype or 'keep'}", *source.decisions, *decisions],
    }
    output = gguf_output(file.name, fields, [*_divisors(source.config), *parts])
    check = partial(check_unchanged, source.files)
    write_file(file, output, receipt, overwrite=overwrite, check=check)


def _config_fields(config: Config) -> dict[str, Any]:
    """The architecture in llama.cpp's words; a number that float32 cannot hold is refused."""
    eps, theta = float(config.norm_eps), float(config.rope_theta)
    refuse_all(
        [
            f"GGUF holds {name} as float32, which cannot say {value!r}"
            for name, value in (("norm_eps", eps), ("rope_theta", theta))
            if decimal(value) != value
        ]
    )
    values = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_seq_len,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": theta,
    }
    refuse_all(
        [
            f"GGUF holds {key} in 32 bits, which cannot say {value}"
            for key, value in values.items()
            if value >= 1 << 32
        ]
    )
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.quantization_version": 2,
        **{f"llama.{key}": value for key, value in values.items()},
    }


def _divisors(config: Config) -> list[GgufPart]:
    """RoPE's scaling, which GGUF holds as what each pair's frequency is divided by."""
    if config.rope_scaling is None:
        return []
    divisors = rope_divisors(config, config.rope_scaling).astype(np.float32)
    return [GgufPart(array_tensor(_ROPE_FREQS, divisors), "F32", divisors.shape)]


def _part(source: Source, rule: Rule, dtype: str | None) -> GgufPart:
    info = source.tensors[rule.ours]
    kind = dtype.upper() if dtype else _KINDS[info.dtype]
    if len(info.shape) == 1:
        kind = "F32"
    plain = exported_tensor(source, rule, range(info.shape[0]))
    if kind == "Q8_0":
        rows, width = info.shape[0], info.shape[-1]
        if width % _Q8_BLOCK:
            raise ValueError(
                f"{rule.ours} has rows of {width} numbers, and q8_0 needs a multiple of "
                f"{_Q8_BLOCK}; choose another dtype"
            )
        shape = (rows, width // _Q8_BLOCK * _Q8_BYTES)
        blocks = partial(_quantized, plain, rule.ours)
        return GgufPart(Tensor(rule.theirs, shape, np.dtype(np.uint8), blocks), kind, info.shape)
    blocks = partial(_cast, plain, rule.ours, _FLOATS[kind])
    return GgufPart(Tensor(rule.theirs, info.shape, _FLOATS[kind], blocks), kind, info.shape)


def _cast(tensor: Tensor, name: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    for block in tensor.blocks():
        yield cast(name, block, dtype)


def _quantized(tensor: Tensor, name: str) -> Iterator[np.ndarray]:
    import gguf

    for block in _cast(tensor, name, _FLOATS["F32"]):
        if np.abs(block).max() > _Q8_LARGEST:
            raise ValueError(f"tensor {name} overflows q8_0; choose another dtype")
        yield gguf.quantize(block, gguf.GGMLQuantizationType.Q8_0)
