"""The format on disk: what is saved comes back to the bit, and every change to it is noticed."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import TINY, replace, sharp_params
from tokenizer_files import rank_file

from jax_llama3 import Model, generate, load, save
from jax_llama3.checkpoint.casting import cast
from jax_llama3.checkpoint.verification import verify
from jax_llama3.text.tokenizer import MODEL, tokenizer_from_files

CONFIG = replace(TINY, vocab_size=600)
SAVED = Model(CONFIG, sharp_params(0, CONFIG), tokenizer_from_files({MODEL: rank_file()}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model", SAVED)
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_save_and_load_are_inverse(tmp_path: Path, dtype: object) -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), SAVED.params)
    save(tmp_path / "model", SAVED._replace(params=params))
    model = load(tmp_path / "model")
    assert model.config == CONFIG
    for ours, theirs in zip(jax.tree.leaves(model.params), jax.tree.leaves(params), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert model.tokenizer.encode("hello", bos=True) == [263, 259]
    assert generate(model, "hello", max_new_tokens=3).text is not None
    verify(tmp_path / "model")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_cast_refuses_what_is_not_finite_and_nothing_else(dtype: object) -> None:
    largest = jnp.finfo(dtype).max
    finite = np.array([[0, -0.0, largest], [1, -largest, jnp.finfo(dtype).tiny]], dtype)
    assert cast("w", finite, dtype).tobytes() == finite.tobytes()
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        for place in range(6):
            broken = finite.copy()
            broken.reshape(-1)[place] = bad
            with pytest.raises(ValueError, match="w holds NaN or infinity"):
                cast("w", broken, dtype)
    values = np.array([[127, -128, 0]], np.int8)
    assert cast("w", values, np.int8) is values
    assert cast("w", np.zeros((0, 3), np.float32), dtype).shape == (0, 3)
    with pytest.raises(ValueError, match="w holds NaN"):
        cast("w", np.array([1, np.nan], ">f4"), np.dtype(">f4"))
    for number in (1e6, -1e6):
        with pytest.raises(ValueError, match="w overflows float16"):
            cast("w", np.array([1, number], np.float32), np.float16)


def test_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax_llama3.checkpoint.shards._SMALLEST", 40_000)
    save(tmp_path / "model", SAVED)
    shards = sorted(path.name for path in (tmp_path / "model").glob("weights-*"))
    assert len(shards) > 3
    assert shards[0] == f"weights-00001-of-{len(shards):05}.safetensors"
    model = load(tmp_path / "model")
    assert np.array_equal(model.params.layers[1].w_down, SAVED.params.layers[1].w_down)
    verify(tmp_path / "model")


def test_load_casts_and_refuses_what_overflows(folder: Path, tmp_path: Path) -> None:
    assert load(folder, dtype=jnp.bfloat16).params.layers[0].wq.dtype == jnp.bfloat16
    large = SAVED.params._replace(norm=SAVED.params.norm * 1e6)
    save(tmp_path / "large", SAVED._replace(params=large))
    with pytest.raises(ValueError, match="norm overflows float16"):
        load(tmp_path / "large", dtype="float16")


def test_check_notices_every_changed_file(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in {0, len(data) // 2, len(data) - 2}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(ValueError, match=str(folder)):
                verify(folder)
        path.write_bytes(data[:-1])
        with pytest.raises(ValueError, match=str(folder)):
            verify(folder)
        path.unlink()
        with pytest.raises(ValueError, match=str(folder)):
            verify(folder)
        path.write_bytes(data)
    (folder / "extra").write_text("")
    with pytest.raises(ValueError, match="extra"):
        verify(folder)


def test_load_refuses_a_folder_that_is_not_whole(folder: Path) -> None:
    (shard,) = folder.glob("weights-*")
    data = shard.read_bytes()
    shard.write_bytes(data[:-8])
    with pytest.raises(ValueError, match="bytes, not"):
        load(folder)
    shard.unlink()
    with pytest.raises(ValueError, match="missing"):
        load(folder)
    shard.write_bytes(data)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="conversion cut short"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load(folder / "nothing")


def test_a_config_of_another_architecture_does_not_load(folder: Path) -> None:
    config = folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "n_layers": 3}, indent=1) + "\n")
    with pytest.raises(ValueError, match="missing or unknown"):
        load(folder)


def test_only_known_dtypes_load_and_only_fitting_weights_save(folder: Path, tmp_path: Path) -> None:
    for dtype in ("int8", "float64"):
        with pytest.raises(ValueError, match="not supported"):
            load(folder, dtype=dtype)
    with pytest.raises(ValueError, match="shapes"):
        save(tmp_path / "other", SAVED._replace(config=replace(CONFIG, ffn_dim=5)))


def test_save_replaces_nothing(folder: Path) -> None:
    before = verify(folder)
    with pytest.raises(FileExistsError, match="exists"):
        save(folder, SAVED)
    assert verify(folder) == before


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jax_llama3.checkpoint.writer.write_shard", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "model", SAVED)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_embedding_is_not_saved(tmp_path: Path) -> None:
    small = dataclasses.replace(CONFIG, vocab_size=262)
    with pytest.raises(ValueError, match="263 tokens"):
        save(tmp_path / "model", Model(small, sharp_params(0, small), SAVED.tokenizer))
