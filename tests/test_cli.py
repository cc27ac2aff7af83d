"""The command line: the answer alone on stdout, one line per failure on stderr."""

import io
import json
from pathlib import Path

import pytest
from commands import run
from random_models import TINY, replace, sharp_params
from tokenizer_files import rank_file

from jax_llama3 import Model, generate, save, score
from jax_llama3.cli.main import main
from jax_llama3.text.chat import chat_tokens
from jax_llama3.text.tokenizer import MODEL, tokenizer_from_files

CONFIG = replace(TINY, vocab_size=600)
SMALL = Model(CONFIG, sharp_params(0, CONFIG), tokenizer_from_files({MODEL: rank_file()}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "model"
    save(path, SMALL)
    return str(path)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_LLAMA3_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


def test_raw_text(folder: str, capsys: pytest.CaptureFixture) -> None:
    arguments = ["generate", "--model", folder, "-p", "hello", "-m", "6", "--ignore-chat-template"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == generate(SMALL, "hello", max_new_tokens=6).text + "\n"
    assert captured.err.splitlines()[0].startswith("prompt: 2 tokens, ")
    assert captured.err.splitlines()[1].startswith("generation: 6 tokens, ")


def test_json_of_a_batch(
    folder: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello hello"))
    options = [
        "--json",
        "-m",
        "5",
        "--temp",
        "1.2",
        "--top-k",
        "50",
        "--top-p",
        "0.9",
        "--seed",
        "4",
    ]
    assert main(["generate", "--model", folder, "-p", "h", "-p", "-", *options]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first) == {"text", "tokens", "prompt_tokens", "logprobs", "finish_reason", "stats"}
    assert len(first["tokens"]) == len(first["logprobs"]) == 5
    assert first["prompt_tokens"][0] == SMALL.tokenizer.bos_id
    assert len(second["prompt_tokens"]) == len(first["prompt_tokens"]) + 1
    assert first["stats"]["generation_tokens"] == 5
    assert first["stats"]["generation_tps"] > 0


def test_the_system_prompt_reaches_the_model(folder: str, capsys: pytest.CaptureFixture) -> None:
    lengths = []
    chat = [
        "generate",
        "--model",
        folder,
        "-p",
        "h",
        "-m",
        "1",
        "--json",
        "--chat-format",
        "llama3",
    ]
    for extra in ([], ["--system-prompt", "hello"]):
        assert main([*chat, *extra]) == 0
        lengths.append(len(json.loads(capsys.readouterr().out)["prompt_tokens"]))
    assert lengths[1] > lengths[0]


def test_what_no_template_says_is_chosen_by_the_user_and_said(
    folder: str, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["generate", "--model", folder, "-p", "hello", "-m", "1", "--json"]
    prompts, notes = [], []
    for extra in ([], ["--chat-format", "llama3"], ["--ignore-chat-template"]):
        assert main([*arguments, *extra]) == 0
        captured = capsys.readouterr()
        prompts.append(json.loads(captured.out)["prompt_tokens"])
        notes.append([line for line in captured.err.splitlines() if line.startswith("note: ")])
    raw = SMALL.tokenizer.encode("hello", bos=True)
    chat = chat_tokens(
        SMALL.tokenizer, [{"role": "user", "content": "hello"}], chat_format="llama3"
    )
    assert prompts == [raw, chat, raw]
    (first,), (second,), third = notes
    assert "raw text; for an Instruct model give --chat-format llama3" in first
    assert second == "note: prompts are in the chat format llama3"
    assert third == []


def test_stop_texts_and_the_models_own_stops(folder: str, capsys: pytest.CaptureFixture) -> None:
    arguments = ["generate", "--model", folder, "-p", "hello", "-m", "8", "--json", "--ignore-eos"]
    assert main(arguments) == 0
    whole = json.loads(capsys.readouterr().out)
    stop = whole["text"][2:4]
    assert main([*arguments, "--stop", "never said", "--stop", stop]) == 0
    cut = json.loads(capsys.readouterr().out)
    assert (cut["text"], cut["finish_reason"]) == (whole["text"].split(stop)[0], "stop")


def test_score(folder: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["score", "--model", folder, "-p", "hello hello", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    expected = score(SMALL, "hello hello")
    assert values["tokens"] == expected.tokens
    assert values["logprobs"][0] is None
    assert values["logprobs"][1:] == pytest.approx(expected.logprobs[1:], abs=1e-4)
    assert values["perplexity"] > 1


def test_info_reads_no_weights(folder: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["info", folder]) == 0
    out = capsys.readouterr().out
    assert "2 of dim 48" in out
    assert "6 over 2 key/value heads of 16" in out
    assert "scaled 8x beyond 64 tokens" in out


LONG = "x" * 600
FAILURES = {
    "no command": ([], 2, "required"),
    "no prompt": (["generate"], 2, "-p"),
    "unknown option": (["generate", "-p", "x", "--bogus"], 2, "bogus"),
    "not a number": (["generate", "-p", "x", "--temp", "hot"], 2, "hot"),
    "missing model": (["generate", "--model", "/nowhere", "-p", "x"], 1, "/nowhere"),
    "default model absent": (["generate", "-p", "x"], 1, "python -m convert fetch smollm2"),
    "info of nothing": (["info", "/nowhere"], 1, "/nowhere"),
    "empty prompt": (["generate", "--model", "@", "-p", ""], 1, "prompt 0 is empty"),
    "long prompt": (["generate", "--model", "@", "-p", LONG], 1, "context 512"),
    "too many new": (["generate", "--model", "@", "-p", "x", "-m", "600"], 1, "ask for at most"),
    "negative new": (["generate", "--model", "@", "-p", "x", "-m", "-1"], 1, "-1"),
    "temperature": (["generate", "--model", "@", "-p", "x", "--temp", "-1"], 1, "temperature"),
    "nan": (["generate", "--model", "@", "-p", "x", "--temp", "nan"], 1, "temperature"),
    "top-p": (["generate", "--model", "@", "-p", "x", "--top-p", "0"], 1, "top_p"),
    "top-k": (["generate", "--model", "@", "-p", "x", "--top-k", "-2"], 1, "top_k"),
    "surrogate": (["generate", "--model", "@", "-p", "\udc80"], 1, "Unicode"),
    "two choices": (
        [
            "generate",
            "--model",
            "@",
            "-p",
            "x",
            "--chat-format",
            "llama3",
            "--ignore-chat-template",
        ],
        1,
        "exclude each other",
    ),
    "system prompt for raw text": (
        ["generate", "--model", "@", "-p", "x", "--system-prompt", "y"],
        1,
        "--chat-format llama3",
    ),
    "score of nothing": (["score", "--model", "@", "-p", ""], 1, "empty"),
}


@pytest.mark.parametrize(("arguments", "status", "word"), FAILURES.values(), ids=FAILURES.keys())
def test_every_failure_is_one_line_and_a_status(
    folder: str, arguments: list[str], status: int, word: str, capsys: pytest.CaptureFixture
) -> None:
    arguments = [folder if argument == "@" else argument for argument in arguments]
    assert run(main, arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert word in captured.err
