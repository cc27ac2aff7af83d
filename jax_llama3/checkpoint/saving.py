"""A model in memory to a converted folder."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..model.config import Config, config_to_dict
from ..model.params import abstract_params, named_leaves
from ..model.quantization import is_quantized, quantize
from ..text.tokenizer import tokenizer_from_files
from .format import Model, check_dtype
from .manifest import CONFIG, FORMAT, json_bytes
from .stream import Tensor, array_tensor
from .writer import shard_outputs, write_folder


def save(path: str | os.PathLike, model: Model) -> None:
    """Write a model as a folder that `load` and `convert check` accept.

    Weights are written in their dtypes: float32, bfloat16, float16, or int8 from `quantize`. A path that
    exists raises FileExistsError; weights of other shapes or dtypes, or a tokenizer with more ordinary
    tokens than the embedding has rows, ValueError.
    """
    expected = abstract_params(model.config, np.float32)
    if is_quantized(model.params):
        expected = jax.eval_shape(quantize, expected)
    if jax.tree.map(np.shape, model.params) != jax.tree.map(np.shape, expected):
        raise ValueError("the weights do not have the shapes that the config gives them")
    leaves = named_leaves(model.params)
    for name, leaf in leaves:
        check_dtype(name, leaf.dtype)
    tensors = [array_tensor(name, leaf) for name, leaf in leaves]
    files = {} if model.tokenizer is None else model.tokenizer.files
    source = {"kind": "jax_llama3.save"}
    write_model(Path(path), model.config, tensors, files, {"source": source})


def write_model(
    folder: Path,
    config: Config,
    tensors: list[Tensor],
    files: dict[str, bytes],
    receipt: dict,
    **options: Any,
) -> None:
    """Write one model in our format; `tensors` come in tree order. Options: `writer.write_folder`."""
    _check_tokenizer(files, config)
    texts = {CONFIG: json_bytes({"format": FORMAT, **config_to_dict(config)}), **files}
    outputs = shard_outputs(tensors, "weights-{:05}-of-{:05}.safetensors")
    write_folder(folder, outputs, texts, receipt, **options)


def _check_tokenizer(files: dict[str, bytes], config: Config) -> None:
    """Refuse one that cannot be read, or that makes ids without a row in the embedding."""
    rows = config.vocab_size
    tokenizer = tokenizer_from_files(files, rows)
    if tokenizer is None:
        return
    if tokenizer.vocabulary.n_ordinary > rows:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocabulary.n_ordinary} tokens, the embedding only {rows} "
            "rows: they belong to different models"
        )
    if tokenizer.add_bos and tokenizer.bos_id is not None and tokenizer.bos_id >= rows:
        raise ValueError(
            f"every text begins with token {tokenizer.bos_id}, but the embedding has {rows} rows"
        )
