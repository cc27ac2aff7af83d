"""A converted model on disk: safetensors shards, its config and texts, and a manifest over all of it.

A folder is written under another name and renamed when it is whole; the manifest is written last.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  safetensors needs it registered to hand out bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from .config import Config, config_from_dict, config_to_dict
from .params import Params, abstract_params, named_leaves
from .tokenizer import GENERATION, JSON, MODEL, TEMPLATE, Tokenizer, tokenizer_from_files

FORMAT = "jax_llama3/1"
CONFIG, MANIFEST = "config.json", "manifest.json"
_TEXTS = (JSON, MODEL, GENERATION, TEMPLATE)
_DTYPES = ("float32", "bfloat16", "float16")
_SHARD_BYTES = 1_000_000_000


class Model(NamedTuple):
    """What `load` returns. `tokenizer` is None if the source had none: such a model takes ids only."""

    config: Config
    params: Params
    tokenizer: Tokenizer | None


def default_folder(name: str) -> Path:
    """Where fetched models live: $JAX_LLAMA3_HOME, or a folder in the user's cache."""
    if home := os.environ.get("JAX_LLAMA3_HOME"):
        return Path(home) / name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jax_llama3" / name


def load(path: str | os.PathLike, *, dtype: Any = None) -> Model:
    """Read a converted model; `dtype` casts its weights (default: as stored).

    Headers, names, shapes and sizes are checked, contents are not: `convert check` does that.
    A folder that is not whole, or a cast that overflows, raises ValueError.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    config = read_config(folder)
    tensors = manifest["tensors"]
    stored = {entry["dtype"] for entry in tensors.values()}
    abstract = abstract_params(config, dtype or next(iter(stored)))
    leaves = []
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    files = _open_shards(folder, manifest)
    with progress(total, "loading") as bar:
        for name, leaf in _expected(abstract, tensors):
            array = files[tensors[name]["file"]].get_tensor(name)
            if array.shape != leaf.shape:
                raise ValueError(f"{folder}: {name} has shape {array.shape}, not {leaf.shape}")
            leaves.append(jnp.asarray(array if dtype is None else cast(name, array, leaf.dtype)))
            bar.update(leaf.size * leaf.dtype.itemsize)
    params = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    return Model(config, params, read_tokenizer(folder, manifest))


def save(path: str | os.PathLike, model: Model) -> None:
    """Write a model so that `load` and `convert check` take it; the path must not exist."""
    tensors = ((name, np.asarray(leaf)) for name, leaf in named_leaves(model.params))
    files = {} if model.tokenizer is None else model.tokenizer.files
    source = {"kind": "jax_llama3.save"}
    write_folder(Path(path), model.config, model.params, tensors, files, {"source": source})


def write_folder(
    folder: Path,
    config: Config,
    abstract: Params,
    tensors: Iterable[tuple[str, np.ndarray]],
    files: dict[str, bytes],
    receipt: dict,
    *,
    overwrite: bool = False,
) -> None:
    """Write one converted model. `tensors` come in tree order; `receipt` goes into the manifest."""
    _check_tokenizer(files, config)
    with _new_folder(folder, overwrite=overwrite) as partial_folder:
        texts = {CONFIG: _json_bytes({"format": FORMAT, **config_to_dict(config)}), **files}
        for name, data in texts.items():
            _write_synced(partial_folder / name, data)
        entries = {}
        sizes = [(name, leaf.size * leaf.dtype.itemsize) for name, leaf in named_leaves(abstract)]
        shards = _partition(sizes)
        stream = iter(tensors)
        with progress(sum(size for _, size in sizes), "writing") as bar:
            for index, names in enumerate(shards, 1):
                file = f"weights-{index:05}-of-{len(shards):05}.safetensors"
                shard = {}
                for name in names:
                    actual, array = next(stream)
                    assert actual == name, (actual, name)
                    shard[name] = np.ascontiguousarray(array)
                _write_shard(partial_folder / file, shard)
                for name, array in shard.items():
                    entries[name] = {"file": file, **_describe(array)}
                    bar.update(array.nbytes)
        manifest = {"format": FORMAT, **receipt, "versions": _versions(), "tensors": entries}
        manifest["files"] = {
            path.name: {"sha256": hash_file(path), "bytes": path.stat().st_size}
            for path in sorted(partial_folder.iterdir())
        }
        manifest["sha256"] = _self_hash(manifest)
        _write_synced(partial_folder / MANIFEST, _json_bytes(manifest))


def verify(path: str | os.PathLike) -> dict:
    """Re-read every byte of a converted folder against its manifest, which is returned.

    The first difference raises ValueError.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    if present != set(manifest["files"]):
        names = ", ".join(sorted(present ^ set(manifest["files"])))
        raise ValueError(f"{folder}: files missing or not in the manifest: {names}")
    with progress(sum(entry["bytes"] for entry in manifest["files"].values()), "checking") as bar:
        for name, entry in manifest["files"].items():
            if hash_file(folder / name, bar) != entry["sha256"]:
                raise ValueError(f"{folder / name} is damaged: its sha256 is not the manifest's")
    config = read_config(folder)
    files = _open_shards(folder, manifest)
    tensors = manifest["tensors"]
    dtype = next(iter(tensors.values()))["dtype"]
    for name, leaf in _expected(abstract_params(config, dtype), tensors):
        found = {**_describe(files[tensors[name]["file"]].get_tensor(name))}
        if found != {key: tensors[name][key] for key in found} or found["shape"] != [*leaf.shape]:
            raise ValueError(f"{folder}: tensor {name} is not the one in the manifest")
    read_tokenizer(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> dict:
    """The manifest of a whole folder; anything else raises, and says what to do."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder at {folder}")
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} holds no {MANIFEST}: not a converted model, or a conversion cut short; "
            "convert again"
        )
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{folder / MANIFEST}: format {manifest.get('format')!r}, not {FORMAT!r}")
    if manifest.get("sha256") != _self_hash(manifest):
        raise ValueError(f"{folder / MANIFEST} is damaged: it does not match its own sha256")
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise ValueError(f"{path} is missing or no plain file; convert again")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, not {entry['bytes']}")
    return manifest


def cast(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in another dtype, rounded to nearest even; a number that is not finite is refused."""
    with np.errstate(over="ignore"):
        result = array.astype(jnp.dtype(dtype), copy=False)
    if not np.isfinite(result).all():
        if np.isfinite(array).all():
            raise ValueError(f"tensor {name} overflows {jnp.dtype(dtype)}; choose another dtype")
        raise ValueError(f"tensor {name} holds NaN or infinity; the source is damaged")
    return result


def hash_file(path: Path, bar: Any = None) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if bar is not None:
                bar.update(len(block))
    return digest.hexdigest()


def progress(total: int, label: str) -> Any:
    """A bar over bytes on stderr, if stderr is a terminal and it takes more than two seconds."""
    return tqdm(
        total=total, desc=label, unit="B", unit_scale=True, delay=2, disable=None, leave=False
    )


def read_tokenizer(folder: Path, manifest: dict) -> Tokenizer | None:
    """The tokenizer of a converted folder, if it has one."""
    texts = {name: (folder / name).read_bytes() for name in _TEXTS if name in manifest["files"]}
    return tokenizer_from_files(texts)


def _check_tokenizer(files: dict[str, bytes], config: Config) -> None:
    """Refuse one that cannot be read, or that makes ids without a row in the embedding."""
    tokenizer = tokenizer_from_files(files)
    if tokenizer is not None and tokenizer.vocabulary.size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocabulary.size} tokens, "
            f"the embedding only {config.vocab_size} rows"
        )


def read_config(folder: Path) -> Config:
    """The architecture of a converted folder."""
    values = _read_json(folder / CONFIG)
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"{folder / CONFIG}: not of format {FORMAT!r}")
    try:
        return config_from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return values


def _expected(abstract: Params, tensors: dict) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Names and leaves of the tree, after a check that the manifest holds exactly these."""
    leaves = named_leaves(abstract)
    if wrong := sorted({name for name, _ in leaves} ^ set(tensors)):
        raise ValueError(f"tensors missing or unknown: {', '.join(wrong[:5])}")
    return leaves


def _open_shards(folder: Path, manifest: dict) -> dict[str, Any]:
    files = {}
    for name in {entry["file"] for entry in manifest["tensors"].values()}:
        if name not in manifest["files"]:
            raise ValueError(f"{folder / MANIFEST} names a shard it does not list: {name}")
        try:
            files[name] = safe_open(folder / name, framework="np")
        except SafetensorError as error:
            raise ValueError(f"{folder / name}: {error}") from None
    return files


def _partition(sizes: list[tuple[str, int]]) -> list[list[str]]:
    """Consecutive tensors grouped into shards of at most _SHARD_BYTES (one larger tensor is alone)."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes:
        if size > room:
            shards.append([])
            room = _SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _write_shard(path: Path, shard: dict[str, np.ndarray]) -> None:
    path.touch()
    mode = path.stat().st_mode  # what the umask gives; the library writes 0600
    save_file(shard, path)
    path.chmod(mode)
    with safe_open(path, framework="np") as written:
        for name, array in shard.items():
            if written.get_tensor(name).tobytes() != array.tobytes():
                raise OSError(f"{path}: {name} was not read back as written; is the disk sound?")
    _sync(path)


def _describe(array: np.ndarray) -> dict:
    data = hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).reshape(-1)).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": data}


def _versions() -> dict[str, str]:
    names = ("jax", "numpy", "ml_dtypes", "safetensors")
    return {"jax_llama3": version("jax_llama3"), **{name: version(name) for name in names}}


def _self_hash(manifest: dict) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _json_bytes(values: dict) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


@contextmanager
def _new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A sibling folder that becomes `folder` when the block ends well, and is removed otherwise."""
    folder = folder.absolute()
    check_output(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    partial_folder = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial_folder.mkdir()
    try:
        yield partial_folder
        _sync(partial_folder)
        check_output(folder, overwrite=overwrite)
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        partial_folder.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is ours and may be replaced."""
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists already; choose another name or --overwrite")
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        raise FileExistsError(f"{folder} is not a converted model and is not replaced; move it away")


def _sweep(folder: Path) -> None:
    """Remove what dead runs on the same output left."""
    for path in folder.parent.glob(f".{folder.name}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_synced(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
