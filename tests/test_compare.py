"""`compare` names nothing in what was converted rightly, and every planted bug where it first shows."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from deferred import deferred

for name in ("torch", "transformers", "llama_models"):
    pytest.importorskip(name)
from checkpoints import (
    META,
    META_PARAMS,
    V4,
    divisors,
    hf_tensors,
    write_folder,
    write_gguf,
    write_meta,
)
from commands import run
from plants import PLANTS, Plant, in_layers, interleaved
from random_models import TINY, replace, sharp_params
from tokenizer_files import rank_file
from transformers_reference import transformers_config

from convert.__main__ import main
from convert.compare.comparison import compare, report
from convert.export import to_hf
from convert.fetch.models import located
from convert.formats.meta import folder as meta
from convert.to_jax import to_jax
from jax_llama3 import Config, Model, Params, save
from jax_llama3.runtime.home import default_folder
from jax_llama3.text.tokenizer import MODEL, tokenizer_from_files

pytestmark = pytest.mark.reference
PARAMS = sharp_params(21, META)
BLOCK = (
    "attn.q attn.k attn.v attn.pattern attn.z attn.out resid_mid mlp.gate mlp.up mlp.out resid_post"
).split()


def write_huggingface(folder: Path, config: Config, params: Params) -> Path:
    values = {**transformers_config(config).to_dict(), "architectures": ["LlamaForCausalLM"]}
    return write_folder(folder, values, hf_tensors(params))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_huggingface(tmp_path_factory.mktemp("source") / "hf", META, PARAMS)


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float16"])
def test_what_was_converted_rightly_diverges_nowhere(
    source: Path, tmp_path: Path, dtype: str
) -> None:
    to_jax(source, tmp_path / "out", dtype=dtype)
    comparison = compare(source, tmp_path / "out")
    assert comparison.first is None
    assert comparison.notes == []
    assert comparison.logits < 1e-4
    assert len(comparison.errors) == 3 + 11 * META.n_layers
    assert max(comparison.errors.values()) < comparison.limit / 10


TIED = replace(TINY, tie_embeddings=True)
UNSCALED = replace(TIED, rope_scaling=None)
TINY_WIDTHS = replace(TINY, ffn_dim=1, n_heads=1, n_kv_heads=1, head_dim=2, n_layers=3)


def gguf(path: Path, config: Config, params: Params) -> Path:
    scaled = None if config.rope_scaling is None else divisors(config)
    return write_gguf(path.with_suffix(".gguf"), config, params, divisors=scaled)


FORMATS = {
    "gguf, tied": lambda path: gguf(path, UNSCALED, sharp_params(1, UNSCALED)),
    "gguf, scaled": lambda path: gguf(path, META, PARAMS),
    "huggingface, tied": lambda path: write_huggingface(path, TIED, sharp_params(1, TIED)),
    "huggingface, narrow": lambda path: write_huggingface(
        path, TINY_WIDTHS, sharp_params(2, TINY_WIDTHS)
    ),
    "meta, two shards": lambda path: write_meta(path, PARAMS, shards=2),
    "meta, four shards": lambda path: write_meta(path, PARAMS, shards=4),
    "meta, bfloat16": lambda path: write_meta(path, PARAMS, dtype="bfloat16"),
    "meta, unscaled": lambda path: write_meta(
        path, PARAMS, values={**META_PARAMS, "use_scaled_rope": False}
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["keep", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_format_has_its_reference(tmp_path: Path, name: str, dtype: str) -> None:
    path = FORMATS[name](tmp_path / "in")
    to_jax(path, tmp_path / "out", dtype=dtype)
    comparison = compare(path, tmp_path / "out")
    assert comparison.first is None
    assert comparison.notes == []
    shown = dict.fromkeys(BLOCK)
    if name.startswith("meta"):
        assert comparison.program.startswith("llama-models")
        del shown["attn.pattern"]
    layers = range(comparison.config.n_layers)
    taps = ["embed", *(f"layers.{i}.{tap}" for i in layers for tap in shown)]
    assert list(comparison.errors) == [*taps, "final_norm", "logits"]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("factor", [1, 8, 32])
def test_metas_model_gets_the_factor_that_was_given(
    tmp_path: Path, scaled: bool, factor: float
) -> None:
    values = {**META_PARAMS, "use_scaled_rope": scaled}
    path = write_meta(tmp_path / "in", PARAMS, values=values)
    to_jax(path, tmp_path / "out", rope_factor=factor)
    assert compare(path, tmp_path / "out", rope_factor=factor).first is None
    other = 8 if factor != 8 else 1
    assert compare(path, tmp_path / "out", rope_factor=other).first == "layers.0.attn.q"


def test_shards_that_we_join_wrongly_are_not_joined_so_by_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = meta._copies
    monkeypatch.setattr(meta, "_copies", lambda groups: join(groups[::-1]))
    path = write_meta(tmp_path / "in", PARAMS, shards=2)
    to_jax(path, tmp_path / "out")
    assert compare(path, tmp_path / "out").first == "embed"


def test_each_weight_of_the_reference_is_rounded_as_ours_is(source: Path, tmp_path: Path) -> None:
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16) if w.ndim > 1 else w, PARAMS)
    save(tmp_path / "out", Model(META, params, None))
    comparison = compare(source, tmp_path / "out")
    assert comparison.dtypes == ["bfloat16", "float32"]
    assert comparison.first is None


@deferred
def test_the_text_is_what_both_read(tmp_path: Path) -> None:
    config = replace(META, vocab_size=263 + 256)
    params = sharp_params(5, config)
    path = write_huggingface(tmp_path / "in", config, params)
    save(tmp_path / "out", Model(config, params, tokenizer_from_files({MODEL: rank_file()})))
    assert compare(path, tmp_path / "out").n_tokens > 100
    comparison = compare(path, tmp_path / "out", text="hello")
    assert comparison.n_tokens == 2  # with the one that begins a text
    assert comparison.first is None
    with pytest.raises(ValueError, match="600"):
        compare(path, tmp_path / "out", text="x" * 599)


def lacking(folder: Path) -> None:
    tensors = hf_tensors(PARAMS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def holding_nan(folder: Path) -> None:
    tensors = hf_tensors(PARAMS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"), [(lacking, r"up_proj\.weight is missing"), (holding_nan, "holds NaN")]
)
def test_a_damaged_source_is_not_blamed_on_the_folder(
    source: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    to_jax(source, tmp_path / "out")
    shutil.copytree(source, tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(ValueError, match=message):
        compare(tmp_path / "in", tmp_path / "out")


def test_a_flipped_bit_in_metas_shard_is_told(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "in", PARAMS)
    to_jax(path, tmp_path / "out")
    shard = path / "consolidated.00.pth"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="CRC-32"):
        compare(path, tmp_path / "out")


def test_a_folder_of_other_files_is_noted(source: Path, tmp_path: Path) -> None:
    other = write_huggingface(tmp_path / "in", META, sharp_params(22, META))
    to_jax(other, tmp_path / "out")
    comparison = compare(source, tmp_path / "out")
    assert comparison.notes == ["the folder was converted from other files than these"]
    assert comparison.first == "embed"


def test_names_that_transformers_does_not_find_are_not_compared(tmp_path: Path) -> None:
    tensors = {
        f"module.{name}": tensor for name, tensor in hf_tensors(sharp_params(1, TINY)).items()
    }
    wrapped = write_folder(tmp_path / "in", V4, tensors)
    to_jax(wrapped, tmp_path / "out")
    with pytest.raises(ValueError, match=r"transformers does not find lm_head.weight and 20 more"):
        compare(wrapped, tmp_path / "out")


def test_an_export_is_not_compared(source: Path, tmp_path: Path) -> None:
    to_jax(source, tmp_path / "out")
    to_hf(tmp_path / "out", tmp_path / "back")
    with pytest.raises(ValueError, match="huggingface format"):
        compare(source, tmp_path / "back")


def test_an_error_that_is_no_number_exceeds_the_limit(source: Path, tmp_path: Path) -> None:
    to_jax(source, tmp_path / "out")
    comparison = compare(source, tmp_path / "out")
    errors = {**comparison.errors, "layers.1.attn.z": float("nan")}
    assert comparison._replace(errors=errors).first == "layers.1.attn.z"
    assert "nan!" in report(comparison._replace(errors=errors))


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
def test_a_planted_bug_is_named_where_it_first_shows(
    source: Path, tmp_path: Path, plant: Plant
) -> None:
    save(tmp_path / "out", plant.change(Model(META, PARAMS, None)))
    assert compare(source, tmp_path / "out").first == plant.first


def test_later_layers_are_not_blamed_for_an_earlier_one(source: Path, tmp_path: Path) -> None:
    change = in_layers(lambda w: {"wk": interleaved(w.wk)}, 0)
    save(tmp_path / "out", change(Model(META, PARAMS, None)))
    comparison = compare(source, tmp_path / "out")
    wrong = {name for name, error in comparison.errors.items() if error > comparison.limit}
    assert wrong == {f"layers.0.{name}" for name in BLOCK} - {"layers.0.attn.q", "layers.0.attn.v"}
    assert comparison.logits > 0.01


def test_what_the_configs_say_differently_is_noted(source: Path, tmp_path: Path) -> None:
    save(tmp_path / "out", Model(replace(META, norm_eps=1e-6), PARAMS, None))
    comparison = compare(source, tmp_path / "out")
    assert comparison.notes == ["norm_eps is 1e-06 here and 1e-05 there"]
    assert "note: norm_eps is 1e-06 here" in report(comparison)


def test_the_command_prints_the_table_draws_it_and_fails_where_they_diverge(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    to_jax(source, tmp_path / "out")
    save(tmp_path / "bad", PLANTS["gate and up swapped"].change(Model(META, PARAMS, None)))
    for file in ("good.png", "good.svg", "good.pdf"):
        command = ["compare", str(source), str(tmp_path / "out"), "--plot", str(tmp_path / file)]
        assert run(main, command) == 0
        assert (tmp_path / file).stat().st_size > 1000
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "no divergence"
    assert printed.err == ""
    assert run(main, ["compare", str(source), str(tmp_path / "bad")]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("first divergence: layers.1.mlp.gate, error")
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "layers.1.mlp.gate" in printed.err


REFUSED = {
    "another shape": (lambda out: compare_with(out, replace(META, n_layers=1)), "n_layers"),
    "no picture": (
        lambda out: ["--plot", str(out / "x.txt")],
        "x.txt does not end in .png or .svg or .pdf",
    ),
    "no folder for it": (
        lambda out: ["--plot", str(out / "no" / "x.png")],
        "no is no folder; make it first",
    ),
    "a text without a tokenizer": (lambda out: ["--text", "hello"], "no tokenizer"),
    "no such folder": (lambda out: ["nowhere"], "nowhere"),
}


def compare_with(out: Path, config: Config) -> list[str]:
    params = PARAMS._replace(layers=PARAMS.layers[: config.n_layers])
    save(out / "other", Model(config, params, None))
    return [str(out / "other")]


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_compared_is_refused_in_one_line(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    options: Callable[[Path], list[str]],
    message: str,
) -> None:
    to_jax(source, tmp_path / "out")
    given = options(tmp_path)
    folder = [] if given and not given[0].startswith("-") else [str(tmp_path / "out")]
    assert run(main, ["compare", str(source), *folder, *given]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_weights_that_are_nan_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    change = in_layers(lambda w: {"wv": w.wv * jnp.nan}, 1)
    save(tmp_path / "out", change(Model(META, PARAMS, None)))
    with pytest.raises(ValueError, match=r"layers\.1\.wv holds NaN"):
        compare(source, tmp_path / "out")


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_diverges_nowhere_and_its_planted_layer_is_named(
    default_model: Model, tmp_path: Path
) -> None:
    with located("smollm2-135m-instruct") as file:
        comparison = compare(file, default_folder("smollm2-135m-instruct"))
        assert comparison.first is None
        assert comparison.logits < 1e-3
    # transformers reads its own format in a second, and a GGUF file in half a minute.
    to_hf(default_folder("smollm2-135m-instruct"), tmp_path / "hf")
    planted = in_layers(lambda w: {"wk": interleaved(w.wk)}, 17)(default_model)
    save(tmp_path / "planted", planted)
    assert compare(tmp_path / "hf", tmp_path / "planted").first == "layers.17.attn.k"
