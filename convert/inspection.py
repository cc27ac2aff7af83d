"""What a checkpoint is, from its headers alone."""

from pathlib import Path

from jax_llama3.checkpoint.format import is_export
from jax_llama3.checkpoint.manifest import read_manifest
from jax_llama3.model.config import config_to_dict

from .formats.jax.folder import open_jax
from .source import NOTE, Source
from .table import NAMES, buffer_bytes, plan
from .to_jax import open_source

_MB = 1e6


def inspect(path: Path, rope_factor: float | None = None) -> str:
    """Kind, config, decisions, tensors and the bytes that a conversion needs, as lines of text.

    `rope_factor` is that of `open_source`. What is no checkpoint raises ValueError; one that cannot be
    converted says why in the last line.
    """
    if _is_ours(path):
        source, _ = open_jax(path)
        return "\n".join([*_head(path, source), *_table(source)])
    source = open_source(path, rope_factor)
    lines = [*_head(path, source), *_table(source)]
    output = NAMES[source.kind]["output"]
    if source.config.tie_embeddings and output in source.tensors:
        lines.append(
            f"  note: to-jax compares {output} with the embedding, and refuses another one"
        )
        rest = {name: info for name, info in source.tensors.items() if name != output}
        source = source._replace(tensors=rest)
    try:
        tensors = plan(source, None)
    except ValueError as error:
        return "\n".join([*lines, f"cannot be converted: {error}"])
    disk = sum(tensor.nbytes for tensor in tensors)
    lines.append(
        f"to-jax: {len(tensors)} tensors, {disk:,} bytes on disk, at most "
        f"{buffer_bytes(source, tensors):,} bytes of buffers"
    )
    return "\n".join(lines)


def _is_ours(path: Path) -> bool:
    try:
        return not is_export(read_manifest(path))
    except (OSError, ValueError):
        return False


def _head(path: Path, source: Source) -> list[str]:
    lines = [f"{path}: {source.kind}, {len(source.files)} files"]
    lines += [f"  {key:15} {value}" for key, value in config_to_dict(source.config).items()]
    return lines + [f"  note: {text.removeprefix(NOTE)}" for text in source.decisions]


def _table(source: Source) -> list[str]:
    width = max(map(len, source.tensors), default=0)
    rows = [
        f"{name:{width}}  {info.dtype:8}  {info.nbytes / _MB:10.3f} MB  {list(info.shape)}"
        for name, info in sorted(source.tensors.items())
    ]
    total = sum(info.nbytes for info in source.tensors.values())
    return [*rows, f"{len(rows)} tensors, {total:,} bytes"]
