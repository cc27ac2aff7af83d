"""The benchmark: what it counts, what it prints, what it refuses."""

import argparse
import csv
import io
import json
import math
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from deferred import deferred
from random_models import TINY, replace, sharp_params

from jax_llama3 import Model, abstract_params, count_params, init_params, quantize, save
from jax_llama3.bench.cost import forward_flops, weight_bytes
from jax_llama3.bench.first_token import _seconds
from jax_llama3.bench.presets import preset, preset_names
from jax_llama3.cli.benchmark import _params
from jax_llama3.cli.main import main
from jax_llama3.runtime.memory import aligned_zeros

KEYS = set(
    "test avg_ts stddev_ts samples_ts dtype compile_seconds gb_s bandwidth_gb_s bandwidth_fraction "
    "temp_bytes recompilations environment".split()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "model"
    save(path, Model(TINY, sharp_params(0, TINY), None))
    return str(path)


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax_llama3.bench.limits._READ_BYTES", 1 << 20)


def bench(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert run(main, ["bench", *words]) == 0
    return capsys.readouterr().out


def test_rows_as_json(folder: str, capsys: pytest.CaptureFixture) -> None:
    jax.clear_caches()  # so that each program is compiled here, whichever test came before
    words = ["-p", "20", "-n", "40", "-d", "0,300", "-b", "1,2", "-r", "2", "-o", "json"]
    rows = json.loads(bench(capsys, "--model", folder, *words))
    names = ["pp20", "pp20 @ d300", "tg40", "tg40 @ d300"]
    assert [(row["test"], row["batch"]) for row in rows] == [
        (name, batch) for pair in (names[:2], names[2:]) for batch in (1, 2) for name in pair
    ]
    for row in rows:
        assert set(row) >= KEYS
        assert len(row["samples_ts"]) == 2
        assert min(row["samples_ts"]) <= row["avg_ts"] <= max(row["samples_ts"])
        assert row["recompilations"] == 0
        assert row["compile_seconds"] > 0
        assert row["temp_bytes"] > 0
        assert row["dtype"] == "float32"
        assert row["bandwidth_fraction"] == pytest.approx(row["gb_s"] / row["bandwidth_gb_s"])
    # A pass reads the weights once: 40 passes for 40 tokens of each row, one for a short prompt.
    decoded = rows[names.index("tg40") + 2]
    seconds = [40 / rate for rate in decoded["samples_ts"]]
    weights = 4 * (count_params(TINY) - TINY.vocab_size * TINY.dim)
    assert decoded["gb_s"] == pytest.approx(40 * weights / (sum(seconds) / 2) / 1e9)


@deferred
def test_rows_as_markdown_and_csv_and_a_picture(
    folder: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    words = ["--model", folder, "-p", "0", "-n", "4", "-r", "1"]
    picture = tmp_path / "roofline.png"
    lines = bench(capsys, *words, "--plot", str(picture)).splitlines()
    assert "jax 0." in lines[0]
    assert lines[-1].split("|")[1].strip() == "tg4"
    assert picture.read_bytes().startswith(b"\x89PNG")
    (row,) = csv.DictReader(io.StringIO(bench(capsys, *words, "-o", "csv")))
    assert row["test"] == "tg4"
    assert row["recompilations"] == "0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "llama9"], "llama9"),
        (["-p", "0", "-n", "0"], "nothing to time"),
        (["-n", "600"], "tg600 exceeds the model's context of 512"),
        (["-p", "12", "-d", "501"], "pp12 @ d501 exceeds"),
        (["-b", "0"], "batch of 0"),
        (["-r", "0"], "repetitions must be at least 1, not 0"),
        (["--plot", "picture.jpg"], "picture.jpg does not end in .png"),
        (["--plot", "nowhere/at/all.png"], "nowhere"),
        (["-p", "4", "-n", "4", "--against", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(
    words: list[str], said: str, folder: str, capsys: pytest.CaptureFixture
) -> None:
    place = [] if "--preset" in words else ["--model", folder]
    small = [] if "-p" in words else ["-p", "0"]
    assert run(main, ["bench", *place, *small, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("word", ["-1", "1,x", "", "1.5"])
def test_numbers_that_are_none_are_a_usage_error(
    word: str, folder: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(main, ["bench", "--model", folder, f"-n={word}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_preset_larger_than_the_memory_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert run(main, ["bench", "--preset", "llama3.1-405b"]) == 1
    assert "needs 811.7 GB" in capsys.readouterr().err


@pytest.mark.parametrize("form", [None, "int8"])
def test_weights_that_no_file_holds_lie_as_those_of_a_file(
    monkeypatch: pytest.MonkeyPatch, form: str | None
) -> None:
    asked = []

    def watched(wanted: list, *, huge: bool = False) -> list:
        asked.extend([huge] * len(wanted))
        return aligned_zeros(wanted, huge=huge)

    monkeypatch.setattr("jax_llama3.runtime.memory.aligned_zeros", watched)
    options = argparse.Namespace(preset="tiny", dtype="bfloat16", quantize=form)
    params = _params(TINY, None, options)
    assert asked == [True] * len(jax.tree.leaves(params))
    expected = init_params(jax.random.key(0), TINY, jnp.bfloat16)
    expected = jax.jit(quantize)(expected) if form else expected
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))


def test_presets_have_the_published_sizes() -> None:
    sizes = {
        "smollm2-135m": 134_515_008,
        "llama3.2-1b": 1_235_814_400,
        "llama3.2-3b": 3_212_749_824,
        "llama3-8b": 8_030_261_248,
        "llama3.1-8b": 8_030_261_248,
        "llama3-70b": 70_553_706_496,
        "llama3.1-70b": 70_553_706_496,
        "llama3.3-70b": 70_553_706_496,
        "llama3.1-405b": 405_853_388_800,
    }
    assert {name: count_params(preset(name)) for name in preset_names()} == sizes


def test_a_pass_reads_all_weights_but_an_untied_embedding() -> None:
    # Llama 3 8B in bfloat16: 15.0 GB per token.
    assert weight_bytes(abstract_params(preset("llama3-8b"), jnp.bfloat16)) == 15_009_849_344
    tied = preset("llama3.2-1b")
    assert weight_bytes(abstract_params(tied, jnp.bfloat16)) == 2 * count_params(tied)
    small = jax.eval_shape(quantize, abstract_params(tied, jnp.bfloat16))
    assert math.isclose(weight_bytes(small), count_params(tied), rel_tol=2e-3)


def test_operations_by_hand() -> None:
    # One layer, everything of size 1 or 2: q k v o are 2x2 each, gate up down 3x2, the head 5x2.
    small = replace(
        TINY, vocab_size=5, dim=2, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, ffn_dim=3
    )
    matrices, head = 4 * 4 + 3 * 6, 10
    # The third and fourth token look at 3 and 4 keys: 7 pairs, 2 numbers each, scores and values.
    assert forward_flops(small, 2, 2, 1) == 2 * (2 * matrices + 7 * 2 * 2 + head)


@deferred
def test_a_first_token_is_timed_in_a_process_of_its_own(
    folder: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JAX_LLAMA3_HOME", str(tmp_path))
    words = ["-p", "0", "-n", "0", "--first-token", "-r", "2", "-o", "json"]
    (row,) = json.loads(bench(capsys, "--model", folder, *words))
    assert row["test"] == "ttft16"
    assert len(row["samples_ts"]) == 2
    assert 0.01 < row["avg_ts"] < 10  # no process imports JAX in a tenth of a second
    assert 0 < row["bandwidth_fraction"] < 1
    nbytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    assert 0.9 < row["gb_s"] * 1e9 / statistics.median(row["samples_ts"]) / nbytes < 1.1
    assert any((tmp_path / "compiled").iterdir())


def test_a_process_without_a_first_token_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ended without one: .*no model folder at .*nothing"):
        _seconds(tmp_path / "nothing", "float32")


@pytest.mark.slow
@pytest.mark.reference
def test_a_peer_times_itself_in_turn(folder: str, capsys: pytest.CaptureFixture) -> None:
    words = ["-p", "8", "-n", "3", "-r", "2", "-o", "json", "--against", "transformers"]
    rows = json.loads(bench(capsys, "--model", folder, *words))
    assert [row["test"] for row in rows] == ["pp8", "pp8", "tg3", "tg3"]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert ours["system"] == "jax_llama3"
        assert theirs["system"].startswith("transformers 5.")
        ratios = [a / b for a, b in zip(ours["samples_ts"], theirs["samples_ts"], strict=True)]
        assert theirs["ratio"] == pytest.approx(sum(ratios) / 2)
        assert (theirs["ratio_min"], theirs["ratio_max"]) == pytest.approx(
            (min(ratios), max(ratios))
        )


@pytest.mark.slow
@pytest.mark.reference
def test_a_peer_of_int8_weights_is_counted_in_its_own_bytes(
    folder: str, capsys: pytest.CaptureFixture
) -> None:
    words = ["-p", "0", "-n", "3", "-r", "1", "-o", "json", "--against", "transformers"]
    ours, theirs = json.loads(bench(capsys, "--model", folder, "--quantize", "int8", *words))
    assert ours["dtype"] == "int8, float32"
    assert theirs["dtype"] == "float32"
    plain = weight_bytes(abstract_params(TINY, jnp.float32))
    small = weight_bytes(jax.eval_shape(quantize, abstract_params(TINY, jnp.float32)))
    for row, size in ((ours, small), (theirs, plain)):
        assert row["gb_s"] == pytest.approx(size * row["avg_ts"] / 1e9)
