"""The check that a picture can be drawn, made before the work whose last step it is."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path


def check_picture(path: Path, suffixes: Sequence[str] = (".png",)) -> None:
    """Refuse a picture that could not be written: ImportError without matplotlib, else ValueError.

    `suffixes` are the ends of names that the caller can draw.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("a picture needs the package matplotlib: pip install 'jax_llama3[plot]'")
    if path.suffix not in suffixes:
        raise ValueError(f"{path} does not end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; choose another name for the picture")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; make it first")
