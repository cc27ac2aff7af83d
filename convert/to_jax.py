"""A checkpoint of any kind to a converted folder."""

import os
from collections.abc import Callable
from pathlib import Path

from jax_llama3.checkpoint.folder import check_output
from jax_llama3.checkpoint.saving import write_model

from .formats.gguf.file import open_gguf
from .formats.huggingface.folder import open_huggingface
from .formats.meta.folder import open_meta
from .formats.tokenizer import beyond_rows, choose_chat_format
from .recognition import recognise
from .source import NOTE, Hashing, Source, SourceFile, check_unchanged
from .table import plan, resolve_tie

DTYPES = ("keep", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8",)


def open_source(
    path: Path,
    rope_factor: float | None = None,
    on_file: Callable[[SourceFile], None] = lambda file: None,
) -> Source:
    """Open a GGUF file, a Hugging Face folder or one of Meta's; only headers are read.

    `rope_factor` is the factor of RoPE's scaling (1: none), which Meta's params.json does not say; for
    the other formats, which say it, it is refused. `on_file` is called with each file whose header
    takes long to read. What is no sound checkpoint raises ValueError or FileNotFoundError.
    """
    kind, place = recognise(path)
    if kind == "meta":
        return open_meta(place, rope_factor, on_file)
    if rope_factor is not None:
        raise ValueError(f"{path} says its own RoPE scaling; --rope-factor is for Meta's folders")
    return open_gguf(place) if kind == "gguf" else open_huggingface(place, on_file)


def to_jax(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    dtype: str = "keep",
    quantize: str | None = None,
    overwrite: bool = False,
    rope_factor: float | None = None,
    chat_format: str | None = None,
    origin: dict | None = None,
    notes: tuple[str, ...] = (),
    on_note: Callable[[str], None] = lambda note: None,
) -> None:
    """Convert the checkpoint at `path` into the new folder `folder`.

    `dtype` "keep" leaves each tensor's dtype; quantised ones become float32. With `quantize` "int8"
    matrices become int8 values and float32 scales, as `jax_llama3.quantize` makes them, and `dtype` is
    that of the norms. `rope_factor` is that of `open_source`. `chat_format` "llama3" says of a model
    without a chat template that it is an Instruct model, which speaks Llama 3's own format. `origin`
    and `notes` go into the manifest: where the files came from, and what was decided as they came.
    `on_note` is called at the end with each line that the user should hear of, which the manifest
    keeps too. What cannot be converted exactly raises ValueError, and an output that exists
    FileExistsError; then nothing is written.
    """
    path, folder = Path(path), Path(folder)
    _check_choices(dtype, quantize)
    check_output(folder, overwrite=overwrite)
    refuse_overlap(path, folder)
    with Hashing() as hashing:
        source = resolve_tie(open_source(path, rope_factor, hashing.add))
        texts, chat = choose_chat_format(source.texts, chat_format)
        decided = [*notes, *source.decisions, *beyond_rows(texts, source.config.vocab_size), *chat]
        kept = None if dtype == "keep" else dtype
        tensors = plan(source, kept, quantize=quantize is not None)
        hashes = hashing.result(source.files)
    decisions = [f"dtype {dtype}", *([] if quantize is None else [f"quantize {quantize}"])]
    receipt = {
        "source": {"kind": source.kind, **(origin or {}), "files": hashes},
        "decisions": [*decisions, *decided],
    }
    write_model(
        folder,
        source.config,
        tensors,
        texts,
        receipt,
        overwrite=overwrite,
        resumable=True,
        check=lambda: check_unchanged(source.files),
    )
    # Only now: a conversion that fails says one line, which is why.
    for note in (decision for decision in decided if decision.startswith(NOTE)):
        on_note(note)


def _check_choices(dtype: str, quantize: str | None) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported, only {', '.join(DTYPES)}")
    if quantize not in (None, *QUANTIZATIONS):
        raise ValueError(f"quantize {quantize!r} is not supported, only {', '.join(QUANTIZATIONS)}")


def refuse_overlap(path: Path, folder: Path) -> None:
    """Refuse an output that is the source or lies inside it."""
    source, output = path.resolve(), folder.resolve()
    if output == source or source in output.parents or output in source.parents:
        raise ValueError(f"{folder} and the source lie inside each other; choose another place")
