"""A checkpoint of any kind to a converted folder."""

from pathlib import Path

from jax_llama3.checkpoint import check_output, hash_file, progress, write_folder

from .gguf_file import open_gguf
from .huggingface import open_huggingface
from .table import Source, convert_tensors, plan, resolve_tie

DTYPES = ("keep", "float32", "bfloat16", "float16")


def open_source(path: Path) -> Source:
    """Open a GGUF file or a Hugging Face folder, headers only."""
    if path.is_file():
        return open_gguf(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no file or folder at {path}")
    if (path / "config.json").is_file():
        return open_huggingface(path)
    raise ValueError(f"{path} holds no config.json: not a Hugging Face folder")


def to_jax(path: Path, folder: Path, *, dtype: str = "keep", overwrite: bool = False) -> None:
    """Convert `path` into `folder`. What cannot be converted exactly raises, and nothing is written.

    `keep` leaves each tensor's dtype; quantised ones become float32.
    """
    check_output(folder, overwrite=overwrite)
    check_apart(path, folder)
    source = resolve_tie(open_source(path))
    table, abstract = plan(source, None if dtype == "keep" else dtype)
    hashes = {}
    with progress(sum(p.stat().st_size for p in source.paths), "hashing the source") as bar:
        for file in source.paths:
            hashes[file.name] = {"sha256": hash_file(file, bar), "bytes": file.stat().st_size}
    receipt = {
        "source": {"kind": source.kind, "files": hashes},
        "decisions": [f"dtype {dtype}", *source.decisions],
    }
    tensors = convert_tensors(source, table, abstract)
    write_folder(
        folder, source.config, abstract, tensors, source.texts, receipt, overwrite=overwrite
    )


def check_apart(path: Path, folder: Path) -> None:
    """Refuse an output that is the source or lies inside it."""
    source, output = path.resolve(), folder.resolve()
    if output == source or source in output.parents or output in source.parents:
        raise ValueError(f"{folder} and the source lie inside each other; choose another place")
