"""Start-up: what was compiled while the weights were read is what generation uses."""

from pathlib import Path

import jax
import jax.monitoring
import numpy as np
import pytest
from reference import TINY, replace, sharp_params
from safetensors.numpy import save_file

from jax_llama3 import Model, generate, load, save
from jax_llama3.manifest import read_manifest
from jax_llama3.shards import Place, aligned_empty, find_tensors, read_tensor
from jax_llama3.startup import load_for

LONG = replace(TINY, max_seq_len=2048)
MODEL = Model(LONG, sharp_params(3, LONG), None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model", MODEL)
    return tmp_path / "model"


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


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_reading_the_prompts_compiles_nothing_more(folder: Path, dtype: str | None) -> None:
    prompts = [[1] * 600, [2, 3]]  # chunks of 512 and 128 tokens
    jax.clear_caches()
    loaded = []
    options = {"dtype": dtype, "max_new_tokens": 4}
    during = compiled_by(lambda: loaded.append(load_for(folder, lambda _: prompts, **options)))
    assert during.count("jit(prefill_unchecked)") == 2
    model, encoded = loaded[0]
    assert encoded is prompts
    again = compiled_by(lambda: loaded.append(generate(model, prompts, max_new_tokens=4)))
    assert "jit(prefill_unchecked)" not in again
    assert "jit(decode_many)" in again  # the listener hears what is compiled
    expected = generate(load(folder, dtype=dtype), prompts, max_new_tokens=4)
    assert [row.tokens for row in loaded[1]] == [row.tokens for row in expected]


def test_prompts_are_refused_before_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(place: Place) -> np.ndarray:
        raise AssertionError(f"{place} was read")

    monkeypatch.setattr("jax_llama3.checkpoint.read_tensor", unread)
    with pytest.raises(ValueError, match="exceeds the model's context of 2048"):
        load_for(folder, lambda _: [[1] * 2000], max_new_tokens=100)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        load_for(folder, lambda _: [[1], []])


def test_a_tensor_lies_where_its_header_says(folder: Path) -> None:
    for name, place in find_tensors(folder, read_manifest(folder)).items():
        _, *path = name.split(".") if name.startswith("layers") else ("", name)
        leaf = MODEL.params if len(path) == 1 else MODEL.params.layers[int(path[0])]
        assert np.array_equal(read_tensor(place), getattr(leaf, path[-1])), name


def test_jax_takes_a_tensor_over_without_a_copy() -> None:
    array = aligned_empty((300, 7), np.float32)
    array[:] = 1
    taken = jax.device_put(array, jax.devices("cpu")[0])
    assert taken.unsafe_buffer_pointer() == array.ctypes.data


def test_a_file_that_shrinks_while_it_is_read_is_refused(folder: Path) -> None:
    place = find_tensors(folder, read_manifest(folder))["norm"]
    with place.path.open("r+b") as file:
        file.truncate(place.start + 4)
    with pytest.raises(ValueError, match=r"weights-.* ends too soon"):
        read_tensor(place)


def test_a_shard_that_does_not_hold_its_tensors_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(folder)
    name = manifest["tensors"]["norm"]["file"]
    save_file({"other": np.zeros(3, np.float32)}, folder / name)
    monkeypatch.setattr("jax_llama3.checkpoint.read_manifest", lambda _: manifest)
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
    monkeypatch.setattr("jax_llama3.checkpoint.read_manifest", lambda _: manifest)
    with pytest.raises(ValueError, match=r"layers\.0\.wq is float32, not float16"):
        load(folder)
