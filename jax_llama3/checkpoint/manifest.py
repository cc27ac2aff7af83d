"""The manifest of a converted folder: what every file and tensor must be, to the bit."""

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "jax_llama3/1"
CONFIG, MANIFEST = "config.json", "manifest.json"
PARTIAL = ".jax_llama3-partial"  # ends the name of a folder that is being written


def read_manifest(folder: Path) -> dict:
    """The manifest of a folder that is whole: every file is there and has its size.

    A missing folder raises FileNotFoundError, one that is not whole ValueError; both say what to do.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} holds no {MANIFEST}: not a converted model, or a conversion cut short; "
            "move it away and convert again"
        )
    if folder.absolute().name.endswith(PARTIAL):
        raise ValueError(f"{folder} is being written, or was cut short; run the same command again")
    manifest = read_sealed(folder / MANIFEST)
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise ValueError(f"{path} is missing or no plain file; convert again with --overwrite")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, not {entry['bytes']}")
    return manifest


def read_sealed(path: Path) -> dict:
    """The values of a manifest that is as it was written; any other file raises ValueError."""
    manifest = read_json(path)
    if not is_format(manifest):
        raise ValueError(f"{path}: format {manifest.get('format')!r}, not {FORMAT!r}")
    # The hash is of the values. A byte that changed without changing a value, such as a space, shows
    # in that the file is not what this module would write.
    written = path.read_bytes() == json_bytes(manifest)
    if not written or manifest.get("sha256") != _self_hash(manifest):
        raise ValueError(f"{path} is damaged: it does not match its own sha256")
    return manifest


def is_format(manifest: dict) -> bool:
    """Whether a manifest is one of this module's."""
    return manifest.get("format") == FORMAT


def sealed_manifest(receipt: dict, files: dict[str, dict], tensors: dict[str, dict]) -> bytes:
    """The manifest over files and tensors, with a hash of itself."""
    manifest = {"format": FORMAT, **receipt, "versions": versions()}
    manifest |= {"files": files, "tensors": tensors}
    return json_bytes({**manifest, "sha256": _self_hash(manifest)})


def describe_bytes(data: bytes) -> dict:
    """sha256 and size of a file's content, as the manifest holds them."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def describe_tensor(array: np.ndarray) -> dict:
    """Shape, dtype and sha256 of a tensor, as the manifest holds them."""
    data = hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": data}


def hash_file(path: Path, bar: Any = None, also: Iterable[Any] = ()) -> str:
    """sha256 of a file, which is read in blocks; `also` are further digests that get the same bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            for each in (digest, *also):
                each.update(block)
            if bar is not None:
                bar.update(len(block))
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """A JSON object from a file; anything else raises ValueError."""
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, path: Path) -> dict:
    """A JSON object without a key twice; the path is for the message of the ValueError."""
    try:
        values = json.loads(data, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return values


def json_bytes(values: dict) -> bytes:
    """The bytes of a JSON file of this format: indented by one, UTF-8, a line end at the end."""
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def versions() -> dict[str, str]:
    """The versions of the packages that decide what is written."""
    names = ("jax", "numpy", "ml_dtypes", "safetensors")
    return {"jax_llama3": version("jax_llama3"), **{name: version(name) for name in names}}


def _self_hash(manifest: dict) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
