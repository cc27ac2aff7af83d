"""Every code block of the README runs, and the Chinese README has the same ones."""

import re
import shlex
from pathlib import Path

import jax
import pytest
from adapters import lora, write_adapter
from checkpoints import META, write_meta
from commands import run
from random_models import sharp_params

from convert.__main__ import main as convert_main
from jax_llama3.cli.main import main as library_main

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh.md")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def without_comments(block: str) -> list[str]:
    return [line.split("#")[0].rstrip() for line in block.splitlines()]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("README.md", "python"))
def test_python_blocks_run(block: str, capsys: pytest.CaptureFixture) -> None:
    # A reader's JAX promotes dtypes as usual.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def commands() -> list[str]:
    lines = [line for block in blocks("README.md", "sh") for line in without_comments(block)]
    return [line for line in lines if line.startswith("python -m")]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("timed", [False, True])
def test_commands_run(tmp_path: Path, capsys: pytest.CaptureFixture, timed: bool) -> None:
    source = write_meta(tmp_path / "in", sharp_params(1, META))
    modules = {
        f"model.layers.{layer}.self_attn.{name}_proj": (rows, 64)
        for layer in range(META.n_layers)
        for name, rows in (("q", 64), ("v", 32))
    }
    adapter = write_adapter(tmp_path / "adapter", lora(modules))
    mains = {"jax_llama3": library_main, "convert": convert_main}
    chosen = [line for line in commands() if (" bench " in line) == timed]
    assert len(chosen) >= (2 if timed else 6)
    for line in chosen:
        line = line.replace("PATH/TO/Llama-3.2-1B", str(source))
        line = line.replace("PATH/TO/ADAPTER", str(adapter))
        words = shlex.split(re.sub(r"\bOUT\b", str(tmp_path / "out"), line))
        assert run(mains[words[2]], words[3:]) == 0, line
    assert capsys.readouterr().out


@pytest.mark.parametrize("language", ["python", "sh", "text"])
def test_the_chinese_readme_has_the_same_blocks(language: str) -> None:
    english, chinese = (blocks(name, language) for name in READMES)
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese, strict=True):
        if language == "text":
            assert len(ours.splitlines()) == len(theirs.splitlines())
        else:
            assert without_comments(ours) == without_comments(theirs)


def test_every_room_is_in_the_file_tree() -> None:
    rooms = [path.parent for path in (ROOT / "jax_llama3").glob("*/__init__.py")]
    rooms += [ROOT / "convert" / name for name in ("formats", "fetch", "compare", "baselines")]
    assert len(rooms) >= 8
    for name in READMES:
        text = (ROOT / name).read_text()
        for room in rooms:
            assert room.is_dir()
            assert f"{room.name}/" in text, (name, room)
