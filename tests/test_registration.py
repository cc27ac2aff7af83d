"""Whether the kernels can be had, and that what numba keeps of them is theirs."""

import shutil
from pathlib import Path

import pytest

from jax_llama3.kernels.cpu import registration as kernels

types = pytest.importorskip("numba").types
compiler = pytest.importorskip("jax_llama3.kernels.cpu.compiled.compiler")


def successor(number: int) -> int:
    return number + 1


def test_a_change_to_any_source_compiles_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "kept"))
    copied = tmp_path / "sources"
    shutil.copytree(Path(compiler.__file__).parent, copied, ignore=shutil.ignore_patterns("__*__"))
    sources = sorted(copied.rglob("*.py"))
    assert len(sources) > 10
    monkeypatch.setattr(compiler, "__file__", str(copied / "compiler.py"))

    def hits() -> int:
        function = compiler.c_function(types.int64(types.int64))(successor)
        assert function.ctypes(4) == 5
        return function.cache_hits

    assert [hits(), hits()] == [0, 1]
    for source in sources:
        with source.open("a") as file:
            file.write("\n")
        assert [hits(), hits()] == [0, 1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(EOFError(), "EOFError"), (OSError(28, "No space left on device"), "No space left on device")],
)
def test_kernels_that_cannot_be_kept_are_done_without(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(kernels, "_handlers", fail)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/kept")
    with pytest.warns(RuntimeWarning, match=rf"slower .*{reason}\); make room in /kept"):
        assert not kernels.has_kernels.__wrapped__()


def test_nothing_is_said_where_numba_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError

    monkeypatch.setattr(kernels, "_handlers", fail)
    assert not kernels.has_kernels.__wrapped__()
