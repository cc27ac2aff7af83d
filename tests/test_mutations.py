"""The tests have power: each of the listed bugs is caught, and the documentation holds the list."""

import subprocess
import sys
from pathlib import Path

from mutations import mutations, planted, row

ROOT = Path(__file__).parent.parent


def test_every_bug_is_caught_and_without_one_the_same_tests_pass() -> None:
    command = [sys.executable, str(ROOT / "tests/mutations.py")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line in rows()] == rows()


def test_the_documentation_holds_the_table() -> None:
    text = (ROOT / "docs/correctness.md").read_text()
    tables = text[text.index("| bug in the code") : text.index("## Not promised")]
    lines = [line for line in tables.splitlines() if line.startswith("| ")]
    assert [line for line in lines if not line.startswith("| bug in ")] == rows()


def rows() -> list[str]:
    return [row(mutation) for mutation in mutations()] + [line for _, line in planted().values()]


def test_there_are_enough_bugs_and_no_two_alike() -> None:
    found = mutations()
    assert len(found) >= 25
    assert len({m.name for m in found}) == len(found)
    assert len({(m.file, *m.edits) for m in found}) == len(found)
