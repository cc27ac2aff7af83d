"""A converted folder back to a Hugging Face folder or to one of Meta's."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from jax_llama3.checkpoint.folder import check_output
from jax_llama3.checkpoint.format import EXPORT
from jax_llama3.checkpoint.manifest import json_bytes
from jax_llama3.checkpoint.stream import Tensor
from jax_llama3.checkpoint.writer import OutputFile, shard_outputs, write_folder
from jax_llama3.text.tokenizer import MODEL, Tokenizer

from .formats.huggingface.config import config_values
from .formats.huggingface.tokenizer import huggingface_files
from .formats.jax.folder import open_unquantized
from .formats.meta.config import params_values
from .formats.meta.folder import CHECKLIST, PARAMS, SHARD
from .formats.meta.pth_writer import write_pth
from .source import Source, check_unchanged, hash_files
from .table import NAMES, Rule, exported_tensor, rules
from .to_jax import refuse_overlap


def to_hf(path: str | os.PathLike, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write the model in `path` as a folder that transformers loads, tensors bit for bit.

    Int8 weights and a folder that is no model of ours raise ValueError, an existing output
    FileExistsError.
    """
    path, folder = Path(path), Path(folder)
    check_output(folder, overwrite=overwrite)
    refuse_overlap(path, folder)
    source, tokenizer = open_unquantized(path)
    table = rules("huggingface", source.config)
    tensors = [
        exported_tensor(source, rule, range(source.tensors[rule.ours].shape[0])) for rule in table
    ]
    outputs = shard_outputs(tensors, "model-{:05}-of-{:05}.safetensors", {"format": "pt"})
    texts = _huggingface_texts(source, tokenizer)
    if len(outputs) == 1:
        outputs = [outputs[0]._replace(name="model.safetensors")]

    def all_texts(written: dict[str, dict]) -> dict[str, bytes]:
        if len(outputs) == 1:
            return texts
        index = {
            "metadata": {"total_size": sum(output.nbytes for output in outputs)},
            "weight_map": {name: file for file, e in written.items() for name in e["tensors"]},
        }
        return {**texts, "model.safetensors.index.json": json_bytes(index)}

    _write(source, folder, outputs, all_texts, "huggingface", overwrite)


def _huggingface_texts(source: Source, tokenizer: Tokenizer | None) -> dict[str, bytes]:
    dtypes = {info.dtype for info in source.tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    bos_id, stop_ids, texts = None, [], {}
    if tokenizer is not None:
        bos_id, stop_ids = tokenizer.bos_id, list(tokenizer.stop_ids)
        texts = huggingface_files(tokenizer, source.config.max_seq_len)
    values = config_values(source.config, dtype, bos_id, stop_ids)
    return {"config.json": json_bytes(values), **texts}


def to_meta(
    path: str | os.PathLike, folder: str | os.PathLike, *, shards: int = 1, overwrite: bool = False
) -> None:
    """Write the model in `path` as Meta's own code loads it on `shards` devices, bit for bit.

    What Meta's format cannot say, such as a tokenizer.json, raises ValueError.
    """
    path, folder = Path(path), Path(folder)
    check_output(folder, overwrite=overwrite)
    refuse_overlap(path, folder)
    source, tokenizer = open_unquantized(path)
    if tokenizer is not None and MODEL not in tokenizer.files:
        raise ValueError(f"{path} has no {MODEL} of Meta's, which Meta's code needs; use to-hf")
    values = params_values(source.config)
    _check_shards(source, shards)
    outputs = []
    for index in range(shards):
        tensors = list(_meta_parts(source, index, shards))
        write = partial(_write_part, tensors=tensors)
        size = sum(tensor.nbytes for tensor in tensors)
        outputs.append(OutputFile(SHARD.format(index), size, write))
    texts = {PARAMS: json_bytes(values)}
    if tokenizer is not None:
        texts[MODEL] = tokenizer.files[MODEL]

    def all_texts(written: dict[str, dict]) -> dict[str, bytes]:
        lines = [f"{written[output.name]['md5']}  {output.name}\n" for output in outputs]
        return {**texts, CHECKLIST: "".join(lines).encode()}

    _write(source, folder, outputs, all_texts, "meta", overwrite)


def _check_shards(source: Source, shards: int) -> None:
    config = source.config
    if shards < 1 or shards > 99:
        raise ValueError(f"--shards {shards} is not between 1 and 99")
    for name in ("n_heads", "ffn_dim", "vocab_size"):
        if getattr(config, name) % shards:
            raise ValueError(f"{name} {getattr(config, name)} is not a multiple of {shards} shards")
    if config.n_kv_heads % shards and shards % config.n_kv_heads:
        raise ValueError(f"{config.n_kv_heads} key/value heads do not divide into {shards} shards")


def _meta_parts(source: Source, index: int, shards: int) -> Iterator[Tensor]:
    """The tensors of one of Meta's shards."""
    table = rules("meta", source.config)
    if source.config.tie_embeddings:
        (embedding,) = (rule for rule in table if rule.ours == "embedding")
        table.append(embedding._replace(theirs=NAMES["meta"]["output"]))
    for rule in table:
        yield _meta_part(source, rule, index, shards)


def _meta_part(source: Source, rule: Rule, index: int, shards: int) -> Tensor:
    shape = source.tensors[rule.ours].shape
    if len(shape) == 1:
        return exported_tensor(source, rule, range(shape[0]))
    if rule.ours.endswith(("wo", "w_down")):
        width = shape[1] // shards
        columns = slice(index * width, (index + 1) * width)
        return exported_tensor(source, rule, range(shape[0]), columns)
    if rule.ours.endswith(("wk", "wv")) and shards > source.config.n_kv_heads:
        # Several shards hold the same head.
        index, shards = index * source.config.n_kv_heads // shards, source.config.n_kv_heads
    height = shape[0] // shards
    return exported_tensor(source, rule, range(index * height, (index + 1) * height))


def _write_part(path: Path, bar: object, *, tensors: list[Tensor]) -> dict:
    """Write one shard. The manifest names its tensors "shard/tensor": every shard has the same names."""
    written = write_pth(path, tensors, bar)
    entries = {f"{path.name}/{name}": entry for name, entry in written["tensors"].items()}
    return {**written, "tensors": entries}


def _write(
    source: Source,
    folder: Path,
    outputs: list[OutputFile],
    texts: Callable[[dict[str, dict]], dict[str, bytes]],
    kind: str,
    overwrite: bool,
) -> None:
    receipt = {
        "source": {"kind": "jax_llama3", "files": hash_files(source.files)},
        EXPORT: kind,
        "decisions": source.decisions,
    }
    write_folder(
        folder,
        outputs,
        texts,
        receipt,
        overwrite=overwrite,
        resumable=True,
        check=lambda: check_unchanged(source.files),
    )
