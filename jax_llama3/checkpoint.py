"""A converted model on disk: safetensors shards, its config and texts, and a manifest over all of it.

A folder is written under another name and renamed when it is whole; the manifest is written last.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .allocator import own_arrays
from .config import Config, config_from_dict, config_to_dict
from .folder import check_output, forget, scratch_folder, sync
from .manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    describe_tensor,
    hash_file,
    json_bytes,
    parse_json,
    read_json,
    read_manifest,
)
from .params import Params, abstract_params, named_leaves
from .progress import progress
from .quantization import is_quantized, quantize, quantize_array
from .shards import Place, find_tensors, map_file, mapped_run, open_shards, runs
from .stream import (
    AHEAD,
    BLOCK_BYTES,
    READ_BACK_BYTES,
    CheckedFile,
    Tensor,
    array_tensor,
    pour,
)
from .tokenizer import (
    GENERATION,
    JSON,
    MODEL,
    TEMPLATE,
    MetaVocabulary,
    Tokenizer,
    byte_level,
    tokenizer_from_files,
)
from .writer import Piece, shard_pieces, write_folder

# What the converter needs to read and write folders of this format, and others in the same way.
__all__ = [
    "AHEAD",
    "BLOCK_BYTES",
    "EXPORT",
    "GENERATION",
    "JSON",
    "MODEL",
    "READ_BACK_BYTES",
    "TEMPLATE",
    "CheckedFile",
    "MetaVocabulary",
    "Model",
    "Piece",
    "Tensor",
    "Tokenizer",
    "abstract_stored",
    "byte_level",
    "cast",
    "check_output",
    "default_folder",
    "forget",
    "hash_file",
    "holds_quantized",
    "json_bytes",
    "load",
    "open_shards",
    "parse_json",
    "pour",
    "progress",
    "quantize_array",
    "read_config",
    "read_json",
    "read_manifest",
    "read_tokenizer",
    "save",
    "scratch_folder",
    "shard_pieces",
    "sync",
    "tokenizer_from_files",
    "verify",
    "write_folder",
    "write_model",
]

EXPORT = "export"  # in a manifest: the folder holds another format, named here
_DTYPES = ("float32", "bfloat16", "float16")
_MAPPED_BYTES = 1 << 20  # a smaller tensor is copied, so that it no longer depends on its file
_HUGE_BYTES = 600_000_000  # of weights that are cast; to find huge pages for more may take too long
_SHARED_BYTES = 1 << 16  # a smaller one that is cast does not keep the memory of its neighbours
_READERS = 3  # threads that read and cast tensors; more keep two cores from compiling meanwhile
_TEXTS = (JSON, MODEL, GENERATION, TEMPLATE)


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

    Of a quantised model it casts the norms, whose dtype is that of the activations and the cache.
    Headers, names, shapes and sizes are checked, contents are not: `convert check` does that.
    Large tensors that need no cast are the pages of their file, on a CPU for as long as they live:
    to remove or replace the folder meanwhile is safe, to write into its files is not.
    A folder that is not whole, or a cast that overflows, raises ValueError.
    """
    with open_model(path, dtype=dtype) as (_, wait):
        return wait()


@contextmanager
def open_model(
    path: str | os.PathLike, *, dtype: Any = None
) -> Iterator[tuple[Model, Callable[[], Model]]]:
    """`load` in two steps: the model with the shapes of its weights, and what waits for the weights.

    Several threads read them meanwhile, and stop where the block is left without them.
    """
    if dtype is not None and jnp.dtype(dtype).name not in _DTYPES:
        raise ValueError(f"dtype {jnp.dtype(dtype)} is not supported, only {', '.join(_DTYPES)}")
    folder = Path(path)
    manifest = read_manifest(folder)
    if EXPORT in manifest:
        raise ValueError(
            f"{folder} is in the {manifest[EXPORT]} format; convert it with to-jax first"
        )
    config = read_config(folder)
    params, places = _find_weights(folder, config, manifest, dtype)
    pool = ThreadPoolExecutor(_READERS)
    try:
        arrays = _start_reading(pool, named_leaves(params), places)
        model = Model(config, params, read_tokenizer(folder, manifest))
        yield model, partial(_wait_for_weights, model, arrays)
    finally:
        pool.shutdown(cancel_futures=True)


def _find_weights(
    folder: Path, config: Config, manifest: dict, dtype: Any
) -> tuple[Params, list[Place]]:
    """The tree with the shapes and dtypes its weights will have, and their places in its order."""
    tensors = manifest["tensors"]
    abstract = abstract_stored(config, tensors, dtype)
    expected = _expected(abstract, tensors)
    found = find_tensors(folder, manifest)
    leaves, places = [], []
    for name, leaf in expected:
        place = found.get(name)
        if place is None or place.path != folder / tensors[name]["file"]:
            raise ValueError(f"{folder}: {name} is not in the shard that {MANIFEST} names")
        if place.shape != leaf.shape:
            raise ValueError(f"{folder}: {name} has shape {place.shape}, not {leaf.shape}")
        if place.dtype.name != tensors[name]["dtype"]:
            raise ValueError(f"{folder}: {name} is {place.dtype}, not {tensors[name]['dtype']}")
        leaves.append(
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if dtype is not None else place.dtype)
        )
        places.append(place)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), places


def _start_reading(
    pool: ThreadPoolExecutor,
    leaves: list[tuple[str, jax.ShapeDtypeStruct]],
    places: list[Place],
) -> Iterator[list[jax.Array]]:
    """Groups of weights on the device, in order, each waited for when it is asked for."""
    files = {path: map_file(path) for path in {place.path for place in places}}
    groups = runs(places)
    remaining = iter(leaves)
    wanted = [list(islice(remaining, len(group))) for group in groups]
    # Threads of a pool do not know in which context they were asked.
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    casts = [leaf for (_, leaf), place in zip(leaves, places, strict=True) if _is_cast(leaf, place)]
    huge = sum(leaf.size * leaf.dtype.itemsize for leaf in casts) <= _HUGE_BYTES

    def read(group: list[Place], wanted: list[tuple[str, jax.ShapeDtypeStruct]]) -> list[jax.Array]:
        arrays = _in_memory(wanted, mapped_run(files[group[0].path], group), huge=huge)
        # Where the device is the CPU, JAX takes aligned arrays over without a copy.
        with jax.default_device(device):
            return jax.device_put(arrays)

    return pool.map(read, groups, wanted)


def _in_memory(
    wanted: list[tuple[str, jax.ShapeDtypeStruct]], mapped: list[np.ndarray], *, huge: bool
) -> list[np.ndarray]:
    """The tensors in the dtypes wanted; large ones that have theirs stay in the pages of their file."""
    pairs = list(zip(wanted, mapped, strict=True))
    shared = [leaf for (_, leaf), array in pairs if _is_cast(leaf, array) and _is_large(leaf)]
    rooms = iter(own_arrays(shared, huge=huge))
    arrays = []
    for (name, leaf), array in pairs:
        if _is_cast(leaf, array):
            arrays.append(cast(name, array, leaf.dtype, next(rooms) if _is_large(leaf) else None))
        else:
            arrays.append(array if array.nbytes >= _MAPPED_BYTES else array.copy())
    return arrays


def _is_cast(leaf: jax.ShapeDtypeStruct, stored: np.ndarray | Place) -> bool:
    return leaf.dtype != stored.dtype


def _is_large(leaf: jax.ShapeDtypeStruct) -> bool:
    return leaf.size * leaf.dtype.itemsize >= _SHARED_BYTES


def _wait_for_weights(model: Model, groups: Iterator[list[jax.Array]]) -> Model:
    """The model with its weights in place of their shapes."""
    arrays = []
    leaves, tree = jax.tree.flatten(model.params)
    with progress(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves), "loading") as bar:
        for group in groups:
            arrays += group
            bar.update(sum(array.nbytes for array in group))
    return model._replace(params=jax.tree.unflatten(tree, arrays))


def save(path: str | os.PathLike, model: Model) -> None:
    """Write a model so that `load` and `convert check` take it; the path must not exist."""
    expected = abstract_params(model.config, np.float32)
    if is_quantized(model.params):
        expected = jax.eval_shape(quantize, expected)
    if jax.tree.map(np.shape, model.params) != jax.tree.map(np.shape, expected):
        raise ValueError("the weights do not have the shapes that the config gives them")
    leaves = named_leaves(model.params)
    for name, leaf in leaves:
        _check_dtype(name, leaf.dtype)
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
    pieces = shard_pieces(tensors, "weights-{:05}-of-{:05}.safetensors")
    write_folder(folder, pieces, texts, receipt, **options)


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
    if EXPORT in manifest:
        return manifest
    config = read_config(folder)
    files = open_shards(folder, manifest)
    tensors = manifest["tensors"]
    for name, leaf in _expected(abstract_stored(config, tensors), tensors):
        found = {**describe_tensor(files[tensors[name]["file"]].get_tensor(name))}
        if found != {key: tensors[name][key] for key in found} or found["shape"] != [*leaf.shape]:
            raise ValueError(f"{folder}: tensor {name} is not the one in the manifest")
    read_tokenizer(folder, manifest)
    return manifest


def cast(name: str, array: np.ndarray, dtype: Any, room: np.ndarray | None = None) -> np.ndarray:
    """The array in another dtype, rounded to nearest even; a number that is not finite is refused.

    `room` is where it is written; by default memory is made for it.
    """
    result = array
    if array.dtype != jnp.dtype(dtype):
        wanted = jax.ShapeDtypeStruct(array.shape, jnp.dtype(dtype))
        result = own_arrays([wanted])[0] if room is None else room
        with np.errstate(all="ignore"):
            np.copyto(result, array, casting="unsafe")
    if not _is_finite(result):
        if _is_finite(array):
            raise ValueError(f"tensor {name} overflows {jnp.dtype(dtype)}; choose another dtype")
        raise ValueError(f"tensor {name} holds NaN or infinity; the source is damaged")
    return result


def _is_finite(array: np.ndarray) -> bool:
    if not array.size or array.dtype.kind in "iu":
        return True
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # As integers infinity and NaN are the largest of each sign: no temporary array is needed.
    infinity, size = array.dtype.type(np.inf), array.dtype.itemsize
    bounds = ((f"i{size}", infinity), (f"u{size}", -infinity))
    return all(array.view(kind).max() < np.array(bound).view(kind) for kind, bound in bounds)


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
    values = read_json(folder / CONFIG)
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"{folder / CONFIG}: not of format {FORMAT!r}")
    try:
        return config_from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


def holds_quantized(tensors: dict) -> bool:
    """Whether the tensors of a manifest are those of a quantised model."""
    return "embedding.values" in tensors


def abstract_stored(config: Config, tensors: dict, dtype: Any = None) -> Params:
    """The tree that a manifest's tensors form, in `dtype`; by default in that of the last norm."""
    stored = tensors["norm"]["dtype"] if "norm" in tensors else np.float32
    abstract = abstract_params(config, dtype or stored)
    return jax.eval_shape(quantize, abstract) if holds_quantized(tensors) else abstract


def _expected(abstract: Params, tensors: dict) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    """Names and leaves of the tree, after a check that the manifest holds exactly these."""
    leaves = named_leaves(abstract)
    if wrong := sorted({name for name, _ in leaves} ^ set(tensors)):
        raise ValueError(f"tensors missing or unknown: {', '.join(wrong[:5])}")
    for name, _ in leaves:
        _check_dtype(name, tensors[name]["dtype"])
    return leaves


def _check_dtype(name: str, dtype: Any) -> None:
    """Refuse a dtype that a tensor of this name cannot have."""
    field = name.rpartition(".")[2]
    allowed = {"values": ("int8",), "scale": ("float32",)}.get(field, _DTYPES)
    if str(dtype) not in allowed:
        raise ValueError(f"{name}: dtype {dtype} is not supported, only {', '.join(allowed)}")
