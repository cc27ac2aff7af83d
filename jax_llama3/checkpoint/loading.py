"""A converted folder to a model in memory: checked by its headers, read by several threads."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..model.config import Config
from ..model.params import Params, named_leaves
from ..runtime.memory import aligned_zeros
from ..runtime.progress import progress
from .casting import cast
from .format import (
    DTYPES,
    Model,
    abstract_stored,
    expected_leaves,
    read_config,
    read_model_manifest,
    read_tokenizer,
)
from .manifest import MANIFEST
from .shards import Place, find_tensors, map_file, mapped_run, runs

_MAPPED_BYTES = 1 << 20  # a smaller tensor is copied and does not keep its file mapped
# Weights that are cast get huge pages up to so many bytes; more take too long to find.
_HUGE_BYTES = 600_000_000
_SHARED_BYTES = 1 << 16  # smaller tensors that are cast get memory of their own
_READERS = 3  # threads that read and cast tensors; more keep two cores from compiling meanwhile


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
    """`load` in two steps: a model with shapes for weights, and a function that returns the loaded one.

    Threads read the weights meanwhile; they stop if the block is left before the function returned.
    Errors are those of `load`: about headers at once, about numbers from the function.
    """
    if dtype is not None and jnp.dtype(dtype).name not in DTYPES:
        raise ValueError(f"dtype {jnp.dtype(dtype)} is not supported, only {', '.join(DTYPES)}")
    folder = Path(path)
    manifest = read_model_manifest(folder)
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
    """The tree of the shapes and dtypes that the weights will have, and each one's place in a file."""
    tensors = manifest["tensors"]
    abstract = abstract_stored(config, tensors, dtype)
    expected = expected_leaves(abstract, tensors)
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
    """Groups of weights on the device, in tree order; asking for the next group waits for it."""
    files = {path: map_file(path) for path in {place.path for place in places}}
    groups = runs(places)
    remaining = iter(leaves)
    wanted = [list(islice(remaining, len(group))) for group in groups]
    # `jax.default_device` is a context of the calling thread, which the pool's threads do not share.
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
    """The tensors in the dtypes wanted; large ones that need no cast stay in the pages of their file."""
    pairs = list(zip(wanted, mapped, strict=True))
    shared = [leaf for (_, leaf), array in pairs if _is_cast(leaf, array) and _is_large(leaf)]
    rooms = iter(aligned_zeros(shared, huge=huge))
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
