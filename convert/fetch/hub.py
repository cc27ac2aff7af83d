"""Models on the Hugging Face hub, through huggingface_hub and its cache."""

import glob
import re
import sys
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
_TEXTS = re.compile(r"[^/]+\.json|(additional_chat_templates/)?[^/]+\.jinja")
_SLOW_TOKENIZER = ("tokenizer.model", "merges.txt")  # of no use beside a tokenizer.json
_PLAIN = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf")
_AT_A_TIME = 4
_TIMEOUT = 30.0  # seconds


class Snapshot(NamedTuple):
    """A source, and of one that the hub gave: which commit of a repository it is."""

    path: Path  # a folder, or a GGUF file
    origin: dict[str, str] | None = None
    notes: tuple[str, ...] = ()


def is_hub_name(name: str) -> bool:
    """Whether a name has the form owner/name or owner/name@revision and is no path that exists."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def download(name: str) -> Snapshot:
    """Download the files of one format into the hub's cache; those of other formats stay on the hub.

    `name` is owner/name or owner/name@revision. In the hub's offline mode (HF_HUB_OFFLINE=1) the files
    are those that the cache holds. What the hub does not give raises OSError, a repository without a
    format that can be read ValueError.
    """
    try:
        from huggingface_hub import constants
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
    bring = _cached if constants.HF_HUB_OFFLINE else _downloaded
    folder, names, notes = bring(name, repository, revision)
    path = folder / names[0] if names[0].endswith(".gguf") else folder
    origin = {"hub": repository, "asked": revision or "main", "revision": folder.name}
    return Snapshot(path, origin, notes)


# A folder named by its commit, the files of it that are needed, and notes.
_Brought = tuple[Path, list[str], tuple[str, ...]]


def _downloaded(name: str, repository: str, revision: str | None) -> _Brought:
    """A repository's files, which are downloaded if they are new."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT)
    except Exception as error:
        raise _not_given(name, error) from None
    names = _choose(name, [sibling.rfilename for sibling in info.siblings or []])
    try:
        # By the name that was asked for, so that the cache knows it without the network.
        folder = Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
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
    if folder.name != info.sha:
        raise OSError(f"{name} has changed on the hub meanwhile; repeat the command")
    return folder, names, ()


def _cached(name: str, repository: str, revision: str | None) -> _Brought:
    """A repository's files, as the hub's cache holds them."""
    import huggingface_hub

    remedy = "and HF_HUB_OFFLINE forbids to download it; unset HF_HUB_OFFLINE"
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[],  # whether what is needed is there is seen below
                local_files_only=True,
            )
        )
    except Exception:
        raise OSError(f"{name} is not in the hub's cache, {remedy}") from None
    held = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    try:
        tree = huggingface_hub.get_cached_repo_tree(repository, revision=folder.name)
    except Exception:  # another program brought the files, one by one, or an older library
        note = (
            f"note: the hub's cache does not say what {name} holds; of its files those are taken "
            "that the cache has"
        )
        return folder, _choose(f"the hub's cache of {name}", sorted(held)), (note,)
    names = _choose(name, [entry.path for entry in tree])
    if missing := sorted({*names} - held):
        raise OSError(f"{missing[0]} of {name} is not in the hub's cache, {remedy}")
    return folder, names, ()


def _not_given(name: str, error: Exception) -> OSError:
    """Any error of the network, the server or the library as one line."""
    from huggingface_hub import constants, errors

    repository, _, revision = name.partition("@")
    login = "log in with 'hf auth login', or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return OSError(f"{name} is gated: accept its licence at {page}, and {login}")
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = f"it has no such model; if it is private, {login}"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"{repository} has no revision {revision!r}"
    return OSError(f"{name}: no such path, and the hub did not give it: {reason}")


def _choose(name: str, files: list[str]) -> list[str]:
    """The files of the one format that is taken.

    It is Hugging Face's safetensors, else Mistral's, else Meta's, else torch's files beside a
    config.json, else a single GGUF file, which may be in parts.
    """
    top = [file for file in files if "/" not in file]
    safetensors = [file for file in top if file.endswith(".safetensors")]
    texts = {file for file in files if _TEXTS.fullmatch(file)}
    if "tokenizer.json" not in top:
        texts.update(_SLOW_TOKENIZER)
    own = [file for file in safetensors if not file.startswith("consolidated")]
    # Beside them may lie variants of another dtype, such as model.fp16.safetensors.
    if plain := [file for file in own if _PLAIN.fullmatch(file)] or own:
        return [file for file in files if file in plain or file in texts]
    if safetensors and "params.json" in top:
        return [file for file in top if file in safetensors or file in texts]
    for prefix in ("original/", ""):
        if any(re.fullmatch(re.escape(prefix) + r"consolidated\.\d+\.pth", file) for file in files):
            return [f for f in files if f.startswith(prefix) and "/" not in f.removeprefix(prefix)]
    torch = [file for file in top if re.fullmatch(r"pytorch_model.*\.bin", file)]
    if torch and "config.json" in top:
        return [file for file in files if file in torch or file in texts]
    ggufs = [file for file in top if file.endswith(".gguf")]
    if len({_GGUF_PART.sub("", file) for file in ggufs}) == 1:
        return sorted(ggufs)
    if ggufs:
        raise ValueError(f"{name} holds {len(ggufs)} GGUF files; download one and convert it")
    raise ValueError(f"{name} holds no safetensors, no files of torch's or Meta's, and no GGUF")
