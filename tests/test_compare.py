"""`compare` names nothing in what was converted rightly, and every planted bug where it first shows."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest
from checkpoints import META, META_PARAMS, hf_tensors, write_folder, write_gguf, write_meta
from plants import PLANTS, Plant, in_layers, interleaved
from reference import TINY, replace, sharp_params, transformers_config
from test_convert import run

from convert.__main__ import main
from convert.compare import compare, report
from convert.fetch import found
from convert.to_jax import to_jax
from jax_llama3 import Config, Model, Params, save
from jax_llama3.checkpoint import default_folder

PARAMS = sharp_params(21, META)


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


FORMATS = {
    "tied, gguf": lambda path: write_gguf(
        path.with_suffix(".gguf"),
        replace(TINY, rope_scaling=None, tie_embeddings=True),
        sharp_params(1, replace(TINY, rope_scaling=None, tie_embeddings=True)),
    ),
    "tied, huggingface": lambda path: write_huggingface(
        path,
        replace(TINY, tie_embeddings=True),
        sharp_params(1, replace(TINY, tie_embeddings=True)),
    ),
    "two shards of Meta's": lambda path: write_meta(path, PARAMS, shards=2),
    "Meta's without scaling": lambda path: write_meta(
        path, PARAMS, values={**META_PARAMS, "use_scaled_rope": False}
    ),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_every_format_has_its_reference(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "in")
    to_jax(path, tmp_path / "out")
    comparison = compare(path, tmp_path / "out")
    assert comparison.first is None
    assert comparison.program.split()[0] == (
        "llama-models" if path.is_dir() and (path / "params.json").exists() else "transformers"
    )


def test_metas_model_is_given_a_scaling_that_its_code_does_not_hold(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "in", PARAMS)
    to_jax(path, tmp_path / "out", rope_factor=32)
    assert compare(path, tmp_path / "out", rope_factor=32).first is None
    assert compare(path, tmp_path / "out", rope_factor=8).first == "layers.0.attn.q"


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
    assert wrong == {"layers.0." + name for name in LATER_THAN_K}
    assert comparison.logits > 0.01


LATER_THAN_K = (
    "attn.k attn.pattern attn.z attn.out resid_mid mlp.gate mlp.up mlp.out resid_post".split()
)


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
    "no picture": (lambda out: ["--plot", str(out / "x.txt")], "a picture is a .png"),
    "no folder for it": (lambda out: ["--plot", str(out / "no" / "x.png")], "in a folder"),
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
def test_the_default_model_diverges_nowhere_and_its_planted_layer_is_named(
    default_model: Model, tmp_path: Path
) -> None:
    with found("smollm2-135m-instruct") as file:
        comparison = compare(file, default_folder("smollm2-135m-instruct"))
        assert comparison.first is None
        assert comparison.logits < 1e-3
        planted = in_layers(lambda w: {"wk": interleaved(w.wk)}, 17)(default_model)
        save(tmp_path / "planted", planted)
        assert compare(file, tmp_path / "planted").first == "layers.17.attn.k"
