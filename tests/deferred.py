"""What `make test` leaves to `make slow`: tests that take seconds beside others of their kind."""

from collections.abc import Callable
from typing import Any

import pytest

# They are compiled there as in `make test`, but for those that use the default model.
DEFERRED = [pytest.mark.slow, pytest.mark.quickly]


def deferred(test: Callable) -> Callable:
    """The test, run by `make slow` alone."""
    for mark in DEFERRED:
        test = mark(test)
    return test


def later(*values: Any, name: str | None = None) -> Any:
    """A case of a test that is run by `make slow` alone."""
    return pytest.param(*values, marks=DEFERRED, id=name)
