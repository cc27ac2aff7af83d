"""A source that is not converted, and the one line that says why."""

from pathlib import Path

import pytest

from convert.to_jax import to_jax


def refused(path: Path) -> str:
    """The line that says why a source is not converted."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        to_jax(path, path.parent / "never")
    assert not (path.parent / "never").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)
