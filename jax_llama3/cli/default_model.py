"""The folder of the model that a command works on."""

from pathlib import Path

from ..runtime.home import default_folder

DEFAULT_MODEL = "smollm2-135m-instruct"


def model_folder(folder: Path | None) -> Path:
    """The folder given, or the default model's if it has been fetched."""
    if folder is not None:
        return folder
    folder = default_folder(DEFAULT_MODEL)
    if not folder.exists():
        raise FileNotFoundError(
            f"the default model is not at {folder}; run: python -m convert fetch {DEFAULT_MODEL}"
        )
    return folder
