"""The tests have power: each of the listed bugs is caught, and the documentation holds the list."""

from pathlib import Path

import pytest
from mutations import Mutation, mutations, planted, row, run_apart

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("mutation", mutations(), ids=lambda mutation: mutation.name)
def test_a_bug_fails_the_test_it_names(mutation: Mutation) -> None:
    assert run_apart([mutation.test], mutation)


@pytest.mark.slow
@pytest.mark.reference
def test_without_a_bug_the_same_tests_pass() -> None:
    assert run_apart(sorted({mutation.test for mutation in mutations()}), None) == ""


def test_the_documentation_holds_the_table() -> None:
    text = (ROOT / "docs/correctness.md").read_text()
    tables = text[text.index("| bug in the code") : text.index("## Not promised")]
    lines = [line for line in tables.splitlines() if line.startswith("| ")]
    rows = [row(mutation) for mutation in mutations()] + [line for _, line in planted().values()]
    assert [line for line in lines if not line.startswith("| bug in ")] == rows


def test_no_two_bugs_are_alike() -> None:
    found = mutations()
    assert len({m.name for m in found}) == len(found)
    assert len({(m.file, *m.edits) for m in found}) == len(found)
