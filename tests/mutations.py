"""The bugs of mutations.txt, put one by one into a copy of the code: each must fail the test it names.

    python tests/mutations.py [WORD ...]

prints the bugs (those whose names hold a word) and which test caught what, then the bugs of plants.py
and what `compare` named. The exit status is 1 if one is not caught, or a test fails without a bug.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from compiling import QUICKLY

ROOT = Path(__file__).parent.parent
_COPIED = ("jax_llama3", "convert", "tests", "pyproject.toml")
# What takes seconds to import is imported once, by the process that all others are forked from.
_PRELOADED = (
    "accelerate beartype gguf hypothesis.strategies jax jaxtyping llama_models.llama3.chat_format "
    "llama_models.llama3.model pytest transformers.models.llama.modeling_llama"
).split()

_AT_A_TIME = min(4, os.cpu_count() or 1)  # each takes 1.5 GB


class Mutation(NamedTuple):
    """A bug: the test that must see it, and texts of the file with what stands there instead."""

    name: str
    file: str
    test: str
    edits: list[tuple[str, str]]


def mutations() -> list[Mutation]:
    """The list as it stands in mutations.txt."""
    found: list[Mutation] = []
    file = ""
    for paragraph in (ROOT / "tests/mutations.txt").read_text().split("\n\n")[1:]:
        lines = paragraph.strip("\n").splitlines()
        if lines[0].startswith("=== "):
            file = lines[0].removeprefix("=== ")
        else:
            found.append(Mutation(lines[0], file, lines[1].strip(), list(_edits(lines[2:]))))
    return found


def _edits(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Runs of `- ` lines and of `+ ` lines, in pairs."""
    old: list[str] = []
    new: list[str] = []
    for line in [*lines, "- "]:
        if line.startswith("- ") and new:
            yield "\n".join(old), "\n".join(new)
            old, new = [], []
        (old if line.startswith("- ") else new).append(line[2:])


def apply(mutation: Mutation, root: Path) -> None:
    """Edit the file below `root`; a text that does not stand there exactly once is refused."""
    path = root / mutation.file
    text = path.read_text()
    for old, new in mutation.edits:
        if text.count(old) != 1:
            raise ValueError(f"{mutation.name}: {old!r} stands {text.count(old)} times in {path}")
        text = text.replace(old, new)
    path.write_text(text)


class _Watch:
    """A pytest plugin that notes how many tests ran, and what each failure was."""

    def __init__(self) -> None:
        self.ran = 0
        self.failures: list[BaseException] = []

    def pytest_runtest_makereport(self, call: Any) -> None:
        self.ran += call.when == "call"
        if call.excinfo is not None:
            self.failures.append(call.excinfo.value)


def run(tests: list[str], mutation: Mutation | None) -> str:
    """What the tests say in a copy of the code that holds the bug: "" if they pass.

    A test that does not run, or fails because the bug is no program, raises RuntimeError.
    """
    import jaxtyping
    import pytest

    sys.dont_write_bytecode = True
    # No bug is in the kernels, and to compile it for every copy takes longer than its test.
    sys.modules["numba"] = None  # pyright: ignore[reportArgumentType]
    # Nor does a bug hide from a program that is compiled in a third of the time.
    os.environ["XLA_FLAGS"] = QUICKLY
    # A test has to see it by its numbers; to check the types of arrays takes as long as the test.
    jaxtyping.install_import_hook = lambda *_: None
    with tempfile.TemporaryDirectory() as folder:
        for name in _COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        if mutation is not None:
            apply(mutation, Path(folder))
        os.chdir(folder)
        sys.path.insert(0, folder)
        watch, output = _Watch(), io.StringIO()
        # What is imported before pytest starts keeps its asserts as they are.
        early = "ignore::pytest.PytestAssertRewriteWarning"
        options = ["-q", "-x", "-p", "no:cacheprovider", "-W", early]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = pytest.main([*options, *(f"tests/{test}" for test in tests)], [watch])
        sources = {
            Path(sys.modules[name].__file__).parent.parent for name in ("jax_llama3", "convert")
        }
        os.chdir("/")
    if sources != {Path(folder)} or not watch.ran or status > 1:
        raise RuntimeError(f"the copy was not tested: {output.getvalue()}")
    for failure in watch.failures:
        if not isinstance(failure, AssertionError) and not _is_refusal(failure, folder):
            raise RuntimeError(f"no answer but {failure!r}: {output.getvalue()}")
    return " ".join(str(watch.failures[0]).split()) if watch.failures else ""


def run_apart(tests: list[str], mutation: Mutation | None) -> str:
    """What `run` says, in a process that has the libraries and nothing else of this one."""
    with _pool(1) as pool:
        return pool.submit(run, tests, mutation).result()


def _pool(size: int) -> ProcessPoolExecutor:
    """Processes of one task each, forked from a server that lives as long as this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return ProcessPoolExecutor(size, context, max_tasks_per_child=1)


def _is_refusal(failure: BaseException, folder: str) -> bool:
    """Whether the code itself refused something, not a library that could not run the bug."""
    place = traceback.extract_tb(failure.__traceback__)[-1].filename
    return isinstance(failure, ValueError) and place.startswith(
        (f"{folder}/jax_", f"{folder}/conv")
    )


def planted() -> dict[str, tuple[str, str]]:
    """The bugs of plants.py: the test that plants each in a converted folder, and its row."""
    sys.path.insert(0, str(ROOT / "tests"))
    from plants import PLANTS

    test = "test_compare.py::test_a_planted_bug_is_named_where_it_first_shows"
    return {
        name: (f"{test}[{name}]", f"| {name} | `{plant.first}` |") for name, plant in PLANTS.items()
    }


def row(mutation: Mutation) -> str:
    """A line of the table."""
    return f"| {mutation.name} | `{mutation.file}` | `{mutation.test}` |"


def main(words: list[str]) -> int:
    def is_chosen(name: str) -> bool:
        return not words or any(word in name for word in words)

    wrong = []
    with _pool(_AT_A_TIME) as pool:

        def tell(name: str, line: str, outcome: Future, *, fails: bool) -> None:
            if outcome.exception() is None and bool(outcome.result()) == fails:
                print(line, flush=True)
            else:
                wrong.append(f"{name}: {outcome.exception() or outcome.result() or 'not caught'}")

        chosen = [mutation for mutation in mutations() if is_chosen(mutation.name)]
        plants = {name: p for name, p in pool.submit(planted).result().items() if is_chosen(name)}
        tests = {mutation.test for mutation in chosen} | {test for test, _ in plants.values()}
        with_bug = [pool.submit(run, [mutation.test], mutation) for mutation in chosen]
        without = pool.submit(run, sorted(tests), None)
        print("| bug in the code | in | caught by |\n|---|---|---|")
        for mutation, outcome in zip(chosen, with_bug, strict=True):
            tell(mutation.name, row(mutation), outcome, fails=True)
        print("\n| bug in a converted folder | `compare` names |\n|---|---|")
        for name, (_, line) in plants.items():
            tell(name, line, without, fails=False)
        if without.exception() or without.result():
            wrong.append(f"without any bug: {without.exception() or without.result()}")
    for problem in dict.fromkeys(wrong):
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(chosen)} + {len(plants)} bugs, {len(wrong)} not caught", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main(sys.argv[1:]))
