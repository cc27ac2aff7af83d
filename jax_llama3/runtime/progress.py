"""Bars on stderr for what takes long: only on a terminal, and only after two seconds."""

from typing import Any

from tqdm import tqdm


def progress(total: int, label: str, unit: str = "B") -> Any:
    """A bar that the caller updates, and closes as a context manager."""
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=unit == "B",
        delay=2,
        disable=None,
        leave=False,
    )
