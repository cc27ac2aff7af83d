"""Models on the Hugging Face hub, through huggingface_hub and its cache."""

import glob
import re
import sys
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
_TEXTS = (".json", ".jinja")
_AT_A_TIME = 4
_TIMEOUT = 30.0  # seconds


class Snapshot(NamedTuple):
    """One commit of a repository, as far as a conversion needs it."""

    path: Path  # a folder, or a GGUF file
    origin: dict[str, str]  # for the manifest


def is_hub_name(name: str) -> bool:
    """Whether a name has the form owner/name or owner/name@revision and is no path that exists."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def download(name: str) -> Snapshot:
    """Download the files of one format into the hub's cache; those of other formats stay on the hub.

    `name` is owner/name or owner/name@revision. What the hub does not give raises OSError, a repository
    without a format that can be read ValueError.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise ModuleNotFoundError(
            "the hub needs the package huggingface_hub: pip install 'jax_llama3[convert]'"
        ) from None
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no hub name; write owner/name or owner/name@revision")
    if not sys.stderr.isatty():
        disable_progress_bars()
    repository, revision = match.groups()
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT)
    except Exception as error:
        raise _not_given(name, error) from None
    names = _choose(name, [sibling.rfilename for sibling in info.siblings or []])
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=info.sha,
                allow_patterns=[glob.escape(file) for file in names],
                etag_timeout=_TIMEOUT,
                max_workers=_AT_A_TIME,
            )
        )
        for file in names:
            # Older versions of the library return a folder that lacks files if the hub fails meanwhile.
            (folder / file).resolve(strict=True)
    except Exception as error:
        raise _not_given(name, error) from None
    path = folder / names[0] if names[0].endswith(".gguf") else folder
    asked = revision or "main"
    return Snapshot(path, {"hub": repository, "asked": asked, "revision": info.sha or ""})


def _not_given(name: str, error: Exception) -> OSError:
    """Any error of the network, the server or the library as one line."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return OSError(f"{name}: no such path, and the hub did not give it: {reason}")


def _choose(name: str, files: list[str]) -> list[str]:
    """The files of the one format that is taken.

    It is Hugging Face's safetensors, else Mistral's, else Meta's, else torch's files beside a
    config.json, else a single GGUF file.
    """
    top = [file for file in files if "/" not in file]
    safetensors = [file for file in top if file.endswith(".safetensors")]
    if plain := [file for file in safetensors if not file.startswith("consolidated")]:
        return [file for file in top if file in plain or file.endswith(_TEXTS)]
    if safetensors and "params.json" in top:
        texts = (*_TEXTS, "tokenizer.model")
        return [file for file in top if file in safetensors or file.endswith(texts)]
    for prefix in ("original/", ""):
        if any(re.fullmatch(re.escape(prefix) + r"consolidated\.\d+\.pth", file) for file in files):
            return [f for f in files if f.startswith(prefix) and "/" not in f.removeprefix(prefix)]
    torch = [file for file in top if re.fullmatch(r"pytorch_model.*\.bin", file)]
    if torch and "config.json" in top:
        return [file for file in top if file in torch or file.endswith(_TEXTS)]
    ggufs = [file for file in top if file.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise ValueError(f"{name} holds {len(ggufs)} GGUF files; download one and convert it")
    raise ValueError(f"{name} holds no safetensors, no files of torch's or Meta's, and no GGUF")
