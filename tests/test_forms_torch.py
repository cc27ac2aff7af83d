"""pytorch_model.bin, bare models and Mistral: beside what torch saves and transformers computes."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from checkpoints import META, META_PARAMS, PARAMS, V4, bits, hf_tensors, meta_tensors, write_folder
from random_models import ATOL, TINY, replace, sharp_params
from refusals import refused
from transformers_reference import transformers_logits, transformers_model

from convert.inspection import inspect
from convert.to_jax import to_jax
from jax_llama3 import forward, load
from jax_llama3.checkpoint.manifest import read_manifest

pytestmark = pytest.mark.reference

TIED = replace(TINY, tie_embeddings=True)
TOKENS = np.arange(100)[None]
INDEX = "pytorch_model.bin.index.json"


def write_bin(folder: Path, shards: int = 1, config: dict = V4) -> Path:
    """A folder as transformers 4 saved it without safetensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.tensor(tensor) for name, tensor in hf_tensors(PARAMS).items()}
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    places = {}
    for index in range(shards):
        names = list(tensors)[index::shards]
        file = f"pytorch_model-{index + 1:05}-of-{shards:05}.bin"
        torch.save({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def difference(folder: Path, reference: torch.nn.Module) -> float:
    """The largest of two logits that should be one."""
    model = load(folder)
    logits, _ = forward(model.params, TOKENS, model.config)
    return float(np.abs(np.asarray(logits) - transformers_logits(reference, TOKENS)).max())


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_model_bin_goes_in(tmp_path: Path, shards: int) -> None:
    source = write_bin(tmp_path / "in", shards)
    to_jax(source, tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config == TINY
    assert bits(model.params) == bits(PARAMS)
    files = read_manifest(tmp_path / "out")["source"]["files"]
    assert set(files) == {path.name for path in source.iterdir()}


def test_it_is_read_in_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.table.BLOCK_BYTES", 2000)
    to_jax(write_bin(tmp_path / "in"), tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)


def test_transformers_reads_the_same_of_it(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    source = write_bin(tmp_path / "in", 2)
    to_jax(source, tmp_path / "out")
    reference = transformers.LlamaForCausalLM.from_pretrained(
        source, use_safetensors=False, dtype="float32"
    )
    found = difference(tmp_path / "out", reference.eval())
    record_property("logits of torch's files beside transformers'", found)
    assert found < ATOL


def test_a_whole_modules_state_goes_in(tmp_path: Path) -> None:
    """Its pickle holds more than tensors: the versions of every module."""
    tied = sharp_params(2, TIED)
    source = write_bin(tmp_path / "in", config={**V4, "tie_word_embeddings": True})
    model = transformers_model(tied, TIED)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    to_jax(source, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(tied)


def test_a_models_own_wrappers_go_in(tmp_path: Path) -> None:
    source = write_bin(tmp_path / "in")
    compiled = torch.compile(transformers_model(PARAMS, TINY), backend="eager")
    torch.save(torch.nn.DataParallel(compiled).state_dict(), source / "pytorch_model.bin")
    to_jax(source, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)
    note = "note: _orig_mod. and module. left out of the names of the tensors"
    assert note in read_manifest(tmp_path / "out")["decisions"]


def test_inspect_reads_its_headers(tmp_path: Path) -> None:
    lines = inspect(write_bin(tmp_path / "in", 2)).splitlines()
    assert lines[0].endswith(": huggingface, 4 files")
    assert lines[-1].startswith("to-jax: 21 tensors")


class Runs:
    """A pickle that would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_code_in_it_never_runs(tmp_path: Path) -> None:
    source = write_bin(tmp_path / "in")
    torch.save({"model.norm.weight": Runs(tmp_path / "mark")}, source / "pytorch_model.bin")
    line = f"{source / 'pytorch_model.bin'}: refused, it holds more than plain tensors: it names "
    assert refused(source).startswith(line)
    assert not (tmp_path / "mark").exists()


def test_a_flipped_weight_is_noticed(tmp_path: Path) -> None:
    source = write_bin(tmp_path / "in")
    path = source / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    place = data.index(np.asarray(PARAMS.layers[0].w_up).tobytes()[:64])
    data[place + 1] ^= 0x40
    path.write_bytes(data)
    assert "pytorch_model.bin: " in refused(source)
    assert "its CRC-32 differs" in refused(source)


AGAIN = "load it in torch with weights_only=True, and save it again with torch.save"


def test_torchs_old_format_is_named_with_the_remedy(tmp_path: Path) -> None:
    source = write_bin(tmp_path / "in")
    path = source / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    line = f"{path}: not a zip archive as torch.save writes it but torch's format from before 1.6; "
    assert refused(source).startswith(line + AGAIN)


def drop(weight_map: dict) -> None:
    del weight_map["model.norm.weight"]


INDICES = {
    "a tensor that is nowhere": (
        lambda places: places.update(ghost=places["model.norm.weight"]),
        "the index names tensors its shards lack: ghost",
    ),
    "a tensor left out": (drop, "holds model.norm.weight, but the index does not"),
    "another file": (
        lambda places: places.update({"model.norm.weight": "pytorch_model-00001-of-00003.bin"}),
        "holds model.norm.weight, but the index says pytorch_model-00001-of-00003.bin",
    ),
    "a path": (
        lambda places: places.update({"model.norm.weight": "../pytorch_model.bin"}),
        "'../pytorch_model.bin' is not a plain file name",
    ),
    "a file that is not there": (
        lambda places: places.update({"model.norm.weight": "pytorch_model-9.bin"}),
        "pytorch_model-9.bin is missing; the index names it",
    ),
}


@pytest.mark.parametrize(("change", "message"), INDICES.values(), ids=INDICES.keys())
def test_its_index_is_checked(tmp_path: Path, change: Callable, message: str) -> None:
    source = write_bin(tmp_path / "in", 3)
    index = json.loads((source / INDEX).read_text())
    places = index["weight_map"]
    if message.endswith("00001-of-00003.bin"):
        places = {**places}
        assert places["model.norm.weight"] != "pytorch_model-00001-of-00003.bin"
    change(places)
    (source / INDEX).write_text(json.dumps({"weight_map": places}))
    assert message in refused(source)


def test_a_shard_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    source = write_bin(tmp_path / "in", 2)
    (source / "pytorch_model-00003-of-00003.bin").touch()
    assert refused(source).endswith("00003-of-00003.bin belongs to no index; move it away")


def test_a_bare_tied_model_computes_what_transformers_computes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    reference = transformers_model(sharp_params(2, TIED), TIED)
    reference.model.save_pretrained(tmp_path / "in")
    to_jax(tmp_path / "in", tmp_path / "out")
    whole = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "in", dtype="float32")
    found = difference(tmp_path / "out", whole.eval())
    record_property("logits of a bare tied model beside transformers'", found)
    assert found < ATOL


def test_a_mistral_without_a_window_computes_what_transformers_computes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    plain = {key: value for key, value in V4.items() if key != "rope_scaling"}
    values = {**plain, "model_type": "mistral", "sliding_window": None}
    values["architectures"] = ["MistralForCausalLM"]
    source = write_folder(tmp_path / "in", values, hf_tensors(PARAMS))
    to_jax(source, tmp_path / "out")
    reference = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    assert type(reference).__name__ == "MistralForCausalLM"
    found = difference(tmp_path / "out", reference.eval())
    record_property("logits of a Mistral without a window beside transformers'", found)
    assert found < ATOL


def test_consolidated_safetensors_give_the_tree_of_the_pth_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    params = sharp_params(3, META)
    tensors = {n: torch.tensor(t) for n, t in meta_tensors(params, META).items()}
    for name in ("pth", "safetensors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "params.json").write_text(json.dumps(META_PARAMS))
    torch.save(tensors, tmp_path / "pth" / "consolidated.00.pth")
    save_file(tensors, tmp_path / "safetensors" / "consolidated.safetensors")
    for name in ("pth", "safetensors"):
        to_jax(tmp_path / name, tmp_path / f"{name}-out")
    found = [load(tmp_path / f"{name}-out") for name in ("pth", "safetensors")]
    assert found[0].config == found[1].config == META
    assert bits(found[0].params) == bits(found[1].params) == bits(params)
