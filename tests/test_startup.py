"""Start-up: what was compiled while the weights were read is what generation uses."""

import mmap
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import TINY, replace, sharp_params
from safetensors.numpy import save_file

from jax_llama3 import Model, Sampler, generate, load, save
from jax_llama3.api import TextRequest, prepare, stream
from jax_llama3.checkpoint.manifest import read_manifest
from jax_llama3.checkpoint.shards import Place, find_tensors, map_file, mapped_run, runs
from jax_llama3.checkpoint.verification import verify
from jax_llama3.runtime.memory import aligned_zeros, move_to_huge_pages
from jax_llama3.startup import starting

LONG = replace(TINY, max_seq_len=2048)
MODEL = Model(LONG, sharp_params(3, LONG), None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model", MODEL)
    return tmp_path / "model"


def start(
    folder: Path, prompts: list[list[int]], dtype: str | None = None, **options: object
) -> tuple[Model, TextRequest]:
    """The model that was finished for the prompts, and what is to be generated."""
    with starting(folder, dtype=dtype) as (abstract, finish):
        prepared = prepare(abstract, prompts, **options)
        return finish(prepared.request), prepared


KEPT = """
import sys
from pathlib import Path
import jax
from jax_llama3.runtime.compilation import keep_compilations

keep_compilations(Path(sys.argv[1]))
assert jax.jit(lambda x: x + 1)(41) == 42
"""


def test_a_kept_program_that_is_not_whole_is_compiled_anew(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", KEPT, tmp_path], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        kept = [path for path in tmp_path.rglob("*-cache") if path.stat().st_size]
        assert kept
        for path in kept:
            path.write_bytes(path.read_bytes()[:100])


def compiled_by(function: object) -> list[str]:
    """The names of the programs that a call compiles."""
    names = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(str(kwargs["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return names


@pytest.mark.xla_pin
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_reading_the_prompts_compiles_nothing_more(folder: Path, dtype: str | None) -> None:
    prompts = [[1] * 600, [2, 3]]  # chunks of 512 and 128 tokens
    jax.clear_caches()
    loaded = []
    options = {"dtype": dtype, "max_new_tokens": 4}
    during = compiled_by(lambda: loaded.append(start(folder, prompts, **options)))
    # One for each width of a chunk, however many layers there are.
    assert max(map(during.count, during)) == 2
    model, _ = loaded[0]
    again = compiled_by(lambda: loaded.append(generate(model, prompts, max_new_tokens=4)))
    assert not {*during} & {*again}
    assert "jit(decode_many)" in again  # the listener hears what is compiled
    expected = generate(load(folder, dtype=dtype), prompts, max_new_tokens=4)
    assert [row.tokens for row in loaded[1]] == [row.tokens for row in expected]


@pytest.mark.xla_pin
def test_the_first_token_compiles_nothing_more(folder: Path) -> None:
    sampler = Sampler(temperature=0.7, top_k=5, repetition_penalty=1.2)
    jax.clear_caches()
    model, prepared = start(folder, [[1, 2, 3]], max_new_tokens=1, sampler=sampler)
    assert compiled_by(lambda: list(stream(model, prepared))) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1] * 2000], "exceeds the model's context of 2048"),
        ([[1], []], "prompt 1 is empty"),
    ],
)
def test_refused_prompts_do_not_wait_for_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]], message: str
) -> None:
    started, began, encoded = [], threading.Event(), threading.Event()

    def slow(file: np.ndarray, places: list[Place]) -> list[np.ndarray]:
        """A read that ends a while after the prompts were there to be refused."""
        started.append(places)
        began.set()
        assert encoded.wait(60)
        time.sleep(1)
        return mapped_run(file, places)

    monkeypatch.setattr("jax_llama3.checkpoint.loading.mapped_run", slow)
    monkeypatch.setattr("jax_llama3.checkpoint.shards._RUN_BYTES", 1)  # every tensor alone
    with starting(folder) as (abstract, _):
        assert began.wait(60)
        encoded.set()
        with pytest.raises(ValueError, match=message):
            prepare(abstract, prompts, max_new_tokens=100)
    assert 0 < len(started) < 10  # of 21: what the readers had begun, and no more


def test_a_tensor_lies_where_its_header_says(folder: Path) -> None:
    places = find_tensors(folder, read_manifest(folder))
    for name, place in places.items():
        (array,) = mapped_run(map_file(place.path), [place])
        _, *path = name.split(".") if name.startswith("layers") else ("", name)
        leaf = MODEL.params if len(path) == 1 else MODEL.params.layers[int(path[0])]
        assert np.array_equal(array, getattr(leaf, path[-1])), name


@pytest.mark.parametrize(("most_bytes", "sizes"), [(1 << 26, {21}), (20_000, {1, 2, 3, 4, 5})])
def test_neighbours_are_mapped_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int, sizes: set[int]
) -> None:
    monkeypatch.setattr("jax_llama3.checkpoint.shards._RUN_BYTES", most_bytes)
    stored = find_tensors(folder, read_manifest(folder))
    places = list(stored.values())
    groups = runs(places)
    assert [place for group in groups for place in group] == places
    assert {len(group) for group in groups} <= sizes
    if most_bytes == 20_000:
        assert 5 < len(groups) < len(places)
    for group in groups:
        # Only the last of a group may reach beyond the limit.
        assert sum(place.nbytes for place in group[:-1]) < most_bytes
        file = map_file(group[0].path)
        alone = [mapped_run(file, [place])[0] for place in group]
        assert all(map(np.array_equal, mapped_run(file, group), alone))
    # Out of order none is the next one's neighbour.
    assert [len(group) for group in runs(places[::-2])] == [1] * len(places[::-2])


def watch_maps(monkeypatch: pytest.MonkeyPatch) -> dict[int, np.ndarray]:
    """What `load` maps from now on, each array by its address."""
    mapped = {}

    def watched(file: np.ndarray, places: list[Place]) -> list[np.ndarray]:
        arrays = mapped_run(file, places)
        mapped.update({array.ctypes.data: array for array in arrays})
        return arrays

    monkeypatch.setattr("jax_llama3.checkpoint.loading.mapped_run", watched)
    return mapped


def test_large_tensors_are_the_pages_of_their_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax_llama3.checkpoint.loading._MAPPED_BYTES", 10_000)
    mapped = watch_maps(monkeypatch)
    expected = generate(MODEL, [1, 2, 3], max_new_tokens=4).tokens
    model = load(folder)
    leaves = jax.tree.leaves(model.params)
    assert len(mapped) == len(leaves)
    large = [leaf for leaf in leaves if leaf.nbytes >= 10_000]
    assert 5 < len(large) < len(leaves)
    for leaf in leaves:
        assert (leaf.unsafe_buffer_pointer() in mapped) == (leaf.nbytes >= 10_000)
    assert not any(array.flags.writeable for array in mapped.values())
    # Nothing that JAX does reaches the file, even when it may reuse their memory.
    kept = load(folder)
    halve = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf / 2, params), donate_argnums=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not all of it can be reused, which JAX says
        halved = halve(model.params)
    assert np.array_equal(halved.embedding, MODEL.params.embedding / 2)
    verify(folder)
    # Who replaces a folder removes it first: pages in use stay.
    shutil.rmtree(folder)
    assert generate(kept, [1, 2, 3], max_new_tokens=4).tokens == expected


def test_small_tensors_no_longer_depend_on_their_file(folder: Path) -> None:
    loaded = load(folder).params
    (shard,) = folder.glob("weights-*")
    shard.write_bytes(bytes(shard.stat().st_size))
    for leaf, stored in zip(jax.tree.leaves(loaded), jax.tree.leaves(MODEL.params), strict=True):
        assert np.array_equal(leaf, stored)


def test_tensors_are_stored_where_they_can_be_taken_over(folder: Path) -> None:
    places = find_tensors(folder, read_manifest(folder)).values()
    assert {place.start % 64 for place in places} == {0}


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_tensors_that_lie_elsewhere_are_loaded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None
) -> None:
    """In bfloat16 the embedding ends where no multiple of 64 bytes is."""
    monkeypatch.setattr("jax_llama3.checkpoint.loading._MAPPED_BYTES", 1)
    stored = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), MODEL.params)
    save(tmp_path / "model", MODEL._replace(params=stored))
    places = find_tensors(tmp_path / "model", read_manifest(tmp_path / "model")).values()
    assert {place.start % 64 for place in places} == {0, 32}
    loaded = load(tmp_path / "model", dtype=dtype).params
    for leaf, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(stored), strict=True):
        assert leaf.dtype == (dtype or "bfloat16")
        assert np.array_equal(leaf, expected.astype(leaf.dtype))


def asks_for_huge_pages(array: np.ndarray) -> bool:
    """Whether the system was asked, whatever it has."""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= array.ctypes.data < int(found[2], 16)
        elif line.startswith("VmFlags:") and inside:
            return "hg" in line.split()
    raise AssertionError("no such address")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process's memory")
def test_huge_pages_are_asked_for(folder: Path) -> None:
    wanted = [jax.ShapeDtypeStruct((1 << 21,), np.float32)] * 2
    for huge in (False, True):
        assert [asks_for_huge_pages(each) for each in aligned_zeros(wanted, huge=huge)] == [
            huge
        ] * 2
    (path,) = folder.glob("weights-*")
    assert asks_for_huge_pages(map_file(path))


@pytest.mark.parametrize("huge", [False, True])
def test_jax_takes_tensors_over_without_a_copy(huge: bool) -> None:
    wanted = [jax.ShapeDtypeStruct((300, 7), np.float32), jax.ShapeDtypeStruct((5,), jnp.bfloat16)]
    arrays = aligned_zeros([*wanted, wanted[0]], huge=huge)
    for number, array in enumerate(arrays):
        array[:] = number + 1
    for number, array in enumerate(arrays):
        taken = jax.device_put(array, jax.devices("cpu")[0])
        assert taken.unsafe_buffer_pointer() == array.ctypes.data
        assert np.all(np.asarray(taken) == number + 1)


def test_a_norm_that_is_kept_does_not_keep_its_neighbours(folder: Path) -> None:
    params = load(folder, dtype="bfloat16").params
    layer = params.layers[0]
    places = [
        leaf.unsafe_buffer_pointer() for leaf in (layer.attn_norm, layer.ffn_norm, params.norm)
    ]
    assert {place % mmap.PAGESIZE for place in places} == {0}


def test_arrays_move_to_huge_pages_unchanged() -> None:
    second = jax.devices()[1]
    arrays = [
        *jax.tree.leaves(MODEL.params),
        jax.device_put(np.arange(1000, dtype=np.int8), second),
    ]
    moved, nbytes = list(arrays), []
    move_to_huge_pages(moved, nbytes.append)
    assert sum(nbytes) == sum(array.nbytes for array in arrays)
    for old, new in zip(arrays, moved, strict=True):
        assert new is not old
        assert (new.dtype, new.device) == (old.dtype, old.device)
        assert np.array_equal(new, old)


def test_cast_weights_lie_in_huge_pages_unless_there_are_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def watched(wanted: list, *, huge: bool = False) -> list[np.ndarray]:
        asked.append(huge)
        return aligned_zeros(wanted, huge=huge)

    monkeypatch.setattr("jax_llama3.checkpoint.loading.aligned_zeros", watched)
    monkeypatch.setattr("jax_llama3.checkpoint.casting.aligned_zeros", watched)
    monkeypatch.setattr("jax_llama3.checkpoint.loading._SHARED_BYTES", 3000)
    params = load(folder, dtype="bfloat16").params
    assert len(asked) == 1 + sum(leaf.nbytes < 3000 for leaf in jax.tree.leaves(params))
    assert asked[0]
    asked.clear()
    monkeypatch.setattr("jax_llama3.checkpoint.loading._HUGE_BYTES", 1000)
    loaded = load(folder, dtype="bfloat16")
    assert not any(asked)
    for leaf, stored in zip(*map(jax.tree.leaves, (loaded.params, MODEL.params)), strict=True):
        assert np.array_equal(leaf, stored.astype("bfloat16"))


def test_a_file_that_shrinks_meanwhile_is_refused(folder: Path) -> None:
    place = find_tensors(folder, read_manifest(folder))["norm"]
    with place.path.open("r+b") as file:
        file.truncate(place.start + 4)
    with pytest.raises(ValueError, match=r"weights-.* ends too soon"):
        mapped_run(map_file(place.path), [place])
    place.path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights-.* cannot be mapped into memory"):
        map_file(place.path)


def test_a_model_in_use_holds_one_open_file_a_shard(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax_llama3.checkpoint.loading._MAPPED_BYTES", 1)
    monkeypatch.setattr("jax_llama3.checkpoint.shards._RUN_BYTES", 1)  # every tensor alone
    opened = []

    def watched(path: Path) -> np.ndarray:
        opened.append(path)
        return map_file(path)

    monkeypatch.setattr("jax_llama3.checkpoint.loading.map_file", watched)
    load(folder)
    assert opened == [*folder.glob("weights-*")]


def test_weights_are_loaded_to_the_device_of_the_context(folder: Path) -> None:
    second = jax.devices()[1]
    with jax.default_device(second):
        model = load(folder)
    assert {leaf.device for leaf in jax.tree.leaves(model.params)} == {second}
    assert {leaf.device for leaf in jax.tree.leaves(load(folder).params)} == {jax.devices()[0]}


def test_a_shard_that_does_not_hold_its_tensors_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(folder)
    name = manifest["tensors"]["norm"]["file"]
    save_file({"other": np.zeros(3, np.float32)}, folder / name)
    monkeypatch.setattr("jax_llama3.checkpoint.format.read_manifest", lambda _: manifest)
    with pytest.raises(
        ValueError, match=r"embedding is not in the shard that manifest\.json names"
    ):
        load(folder)
    save_file({"norm": np.zeros(3, np.float64)}, folder / name)
    with pytest.raises(ValueError, match=r"weights-.*: norm has dtype F64, not supported"):
        load(folder)


def test_a_dtype_that_is_not_the_manifests_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(folder)
    manifest["tensors"]["layers.0.wq"]["dtype"] = "float16"
    monkeypatch.setattr("jax_llama3.checkpoint.format.read_manifest", lambda _: manifest)
    with pytest.raises(ValueError, match=r"layers\.0\.wq is float32, not float16"):
        load(folder)
