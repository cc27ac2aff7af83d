"""Progress bars on stderr, which appear only on a terminal and only after two seconds."""

from typing import Any

from tqdm import tqdm


def progress(total: int, label: str, unit: str = "B", *, shown: bool = True) -> Any:
    """A bar of `total` bytes, or of another `unit`, as a context manager; the caller updates it."""
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=unit == "B",
        delay=2,
        disable=None if shown else True,  # None: where stderr is no terminal
        leave=False,
    )
