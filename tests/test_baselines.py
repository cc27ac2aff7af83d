"""Other systems as child processes: what they answer, how they are timed, refuse and leave behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from random_models import TINY, replace

from jax_llama3.bench.baselines import baseline
from jax_llama3.model.config import Config, RopeScaling, config_to_dict

# llama.cpp asks for rows of a multiple of 32; scaled, so that the file has its divisors too.
SMALL = replace(TINY, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96)
SCALED = replace(SMALL, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
PEER = [sys.executable, "-m", "convert.baselines"]


def first_line(config: Config) -> str:
    words = {"config": config_to_dict(config), "dtype": "float32", "capacity": 64}
    return json.dumps(words) + "\n"


def test_a_system_that_is_not_known_is_named() -> None:
    with (
        pytest.raises(
            ValueError, match=r"nope.*known are transformers, torch\.compile, llama\.cpp"
        ),
        baseline("nope", SMALL, "float32", 64),
    ):
        pass


@pytest.mark.slow
def test_malformed_requests_are_answered_with_one_line_each() -> None:
    lines = "no json\n[]\n{}\n"
    done = subprocess.run(
        [*PEER, "transformers"], input=lines, capture_output=True, text=True, timeout=60
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(answer) for answer in answers] == [{"error"}] * 3
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dtype"), [(SMALL, "float32"), (SCALED, "bfloat16")], ids=["plain", "scaled"]
)
def test_llama_cpp_takes_the_file_of_random_weights(config: Config, dtype: str) -> None:
    pytest.importorskip("llama_cpp")
    with baseline("llama.cpp", config, dtype, 64) as (system, seconds):
        assert "llama-cpp-python" in system
        assert seconds(test="pp", tokens=9, depth=0, batch=1) > 0
        assert seconds(test="tg", tokens=2, depth=3, batch=1) > 0
        with pytest.raises(ValueError, match="65 tokens do not fit a cache of 64"):
            seconds(test="pp", tokens=5, depth=60, batch=1)
        with pytest.raises(ValueError, match="'xx' is no test"):
            seconds(test="xx", tokens=1, depth=0, batch=1)
        assert seconds(test="pp", tokens=4, depth=60, batch=1) > 0  # it goes on


def test_a_process_that_dies_is_said_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    dying = [sys.executable, "-c", "import os; input(); os.abort()"]
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start(dying, **options))
    with (
        pytest.raises(ValueError, match=f"ended without an answer, status -{signal.SIGABRT:d}"),
        baseline("transformers", SMALL, "float32", 64),
    ):
        pass


@pytest.mark.slow
def test_a_peer_that_is_ended_while_it_writes_leaves_no_file(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    large = replace(SMALL, vocab_size=32000, dim=1024, n_heads=16, head_dim=64, ffn_dim=4096)
    process = subprocess.Popen(
        [*PEER, "llama.cpp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stdin is not None
    process.stdin.write(first_line(large))
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("model.gguf")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.rglob("model.gguf"))
    process.terminate()
    process.communicate(timeout=60)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_a_peer_compiled_by_torch_decodes_from_any_depth() -> None:
    with baseline("torch.compile", TINY, "float32", 64) as (system, run):
        assert system.startswith("torch.compile, transformers ")
        for test, tokens, depth in (("tg", 3, 0), ("tg", 3, 20), ("pp", 4, 5)):
            assert run(test=test, tokens=tokens, depth=depth, batch=2) > 0


@pytest.mark.slow
@pytest.mark.reference
def test_a_peer_that_fails_says_why() -> None:
    with baseline("transformers", TINY, "float32", 64) as (_, seconds):
        assert seconds(test="tg", tokens=2, depth=3, batch=2) > 0
        with pytest.raises(ValueError, match="transformers: TypeError"):
            seconds(test="tg", tokens="x", depth=0, batch=1)
        assert seconds(test="pp", tokens=2, depth=0, batch=1) > 0  # it goes on
