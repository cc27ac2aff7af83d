"""What stands at a path: a form that is converted, or what it is instead, and what to do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jax_llama3.checkpoint.manifest import FORMAT, read_json

from .formats.huggingface.config import model_type_refusal
from .formats.huggingface.quantized import quantization_refusal
from .formats.meta.folder import PARAMS
from .formats.weight_files import HUGGINGFACE, PYTORCH, FileSet
from .source import check_plain

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_METAS = re.compile(r"consolidated\.\d+\.pth|consolidated.*\.safetensors")
_METAS_SAFETENSORS = re.compile(r"consolidated.*\.safetensors")
_PARTS = (".safetensors", ".bin", ".pth", ".pt", ".json", ".model")
_TOKENIZER = re.compile(r"tokenizer\.(json|model)|vocab\.json|tokenizer_config\.json")
_DEEPSPEED = re.compile(r"zero_to_fp32\.py|global_step\d+")
_OTHER_FRAMEWORKS = re.compile(r"(tf_model|flax_model|rust_model)[.-].*|.*\.(onnx|tflite)")


class Contents(NamedTuple):
    """A path, the names in it if it is a folder, and what two of its files say ({} without one)."""

    path: Path
    names: frozenset[str] = frozenset()
    config: dict[str, Any] = {}  # noqa: RUF012  nobody changes it
    adapter: dict[str, Any] = {}  # noqa: RUF012


class Form(NamedTuple):
    """A form, what shows that a path is of it, and what is said if it is not one to convert.

    The name of a form that is converted is that of its format; `folder` is where in the path it lies.
    """

    name: str
    evidence: Callable[[Contents], Any]
    remedy: Callable[[Contents], str] | None = None
    folder: str = ""


def recognise(path: Path) -> tuple[str, Path]:
    """The format of a checkpoint, "huggingface", "meta" or "gguf", and where its files are.

    What is something else raises ValueError, which names it and says what to do.
    """
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(f"no file or folder at {path}")
    contents, forms = (_look(path), FOLDERS) if path.is_dir() else (Contents(path), FILES)
    form = next(form for form in forms if form.evidence(contents))
    if form.remedy is not None:
        raise ValueError(form.remedy(contents))
    return form.name, path / form.folder


def _look(folder: Path) -> Contents:
    names = frozenset(entry.name for entry in folder.iterdir())
    return Contents(folder, names, *(_read(folder / name, names) for name in (_CONFIG, _ADAPTER)))


def _read(path: Path, names: frozenset[str]) -> dict[str, Any]:
    if path.name not in names:
        return {}
    check_plain(path)
    return read_json(path)


def _any(pattern: re.Pattern, names: frozenset[str]) -> bool:
    return any(pattern.fullmatch(name) for name in names)


def _has_weights(contents: Contents, *sets: FileSet) -> bool:
    """Whether one of the names is that of a set's only file, or of its index."""
    wanted = {
        name for files in sets or (HUGGINGFACE, PYTORCH) for name in (files.single, files.listing)
    }
    return bool(wanted & contents.names)


def _is_metas(contents: Contents) -> bool:
    """Whether a folder is Meta's; a config.json makes it one of Hugging Face's, if that has weights."""
    if _CONFIG not in contents.names:
        return PARAMS in contents.names or _any(_METAS, contents.names)
    whole = PARAMS in contents.names and _any(_METAS_SAFETENSORS, contents.names)
    return whole and not _has_weights(contents)


def _has_metas_original(contents: Contents) -> bool:
    folder = contents.path / "original"
    if _CONFIG in contents.names or not folder.is_dir():
        return False
    names = frozenset(entry.name for entry in folder.iterdir())
    if folder.is_symlink() and _is_metas(Contents(folder, names)):
        raise ValueError(f"{folder} is a link; name the folder that it leads to")
    return _is_metas(Contents(folder, names))


def _checkpoints(contents: Contents) -> list[str]:
    """The folders in a folder that could be meant instead."""
    return sorted(n for n in contents.names if (contents.path / n / _CONFIG).is_file())


def _gguf_files(contents: Contents) -> list[Path]:
    return sorted(contents.path / name for name in contents.names if name.endswith(".gguf"))


def _begins_with_gguf(contents: Contents) -> bool:
    with open(contents.path, "rb") as file:
        return file.read(4) == b"GGUF"


def _say_adapter(contents: Contents) -> str:
    values = contents.adapter
    kind = values.get("peft_type") or "LORA"
    base = values.get("base_model_name_or_path") or "a model that it does not name"
    said = "a LoRA adapter" if kind == "LORA" else f"an adapter of the kind {kind}"
    also = f"; delete {_ADAPTER} to convert the weights beside it" if contents.config else ""
    return (
        f"{contents.path} is {said} of {base}: convert that model, and then: "
        f"convert merge DIR {contents.path} DST{also}"
    )


FILES = (
    Form("gguf", _begins_with_gguf),
    Form(
        "a part of a folder",
        lambda c: c.path.suffix in _PARTS,
        lambda c: (
            f"{c.path} is one file of a checkpoint; name its folder, {c.path.absolute().parent}"
        ),
    ),
    Form("gguf", lambda c: True),  # its reader says what is wrong with it
)

# The first form that a folder is of is the one it is taken for.
FOLDERS = (
    Form(
        "a converted model",
        lambda c: str(c.config.get("format")).startswith(FORMAT.partition("/")[0] + "/"),
        lambda c: f"{c.path} is a converted model already; load it, or use to-hf or to-meta",
    ),
    Form("an adapter", lambda c: _ADAPTER in c.names, _say_adapter),
    Form(
        "a model of another kind",
        lambda c: _CONFIG in c.names and model_type_refusal(c.config),
        lambda c: f"{c.path / _CONFIG}: {model_type_refusal(c.config)}",
    ),
    Form(
        "a quantised model",
        lambda c: quantization_refusal(c.config),
        lambda c: f"{c.path / _CONFIG}: {quantization_refusal(c.config)}",
    ),
    Form("meta", _is_metas),
    Form("meta", _has_metas_original, folder="original"),
    Form("huggingface", lambda c: _CONFIG in c.names and _has_weights(c)),
    Form(
        "GGUF files",
        lambda c: _CONFIG not in c.names and _gguf_files(c),
        lambda c: (
            f"{c.path} is a folder of GGUF files; name one of them, such as {_gguf_files(c)[0]}"
        ),
    ),
    Form(
        "weights alone",
        _has_weights,
        lambda c: f"{c.path / _CONFIG} is missing; copy it from where the weights come from",
    ),
    Form(
        "a repository in the hub's cache",
        lambda c: {"blobs", "snapshots"} <= c.names,
        lambda c: f"{c.path} is the hub's cache; name a folder in {c.path / 'snapshots'}",
    ),
    Form(
        "DeepSpeed's checkpoint",
        lambda c: _any(_DEEPSPEED, c.names),
        lambda c: (
            f"{c.path} holds DeepSpeed's parts of a model; join them with its zero_to_fp32.py"
        ),
    ),
    Form(
        "another framework's",
        lambda c: _any(_OTHER_FRAMEWORKS, c.names),
        lambda c: (
            f"{c.path} holds only weights of another framework; load them in transformers and "
            "save_pretrained them as safetensors"
        ),
    ),
    Form("huggingface", lambda c: _CONFIG in c.names),  # its reader says what is missing
    Form(
        "a folder of checkpoints",
        _checkpoints,
        lambda c: f"{c.path} holds no checkpoint itself; name {c.path / _checkpoints(c)[-1]}",
    ),
    Form(
        "a tokenizer",
        lambda c: _any(_TOKENIZER, c.names),
        lambda c: f"{c.path} holds only a tokenizer; config.json and the weights are missing",
    ),
    Form(
        "nothing that is known",
        lambda c: True,
        lambda c: f"{c.path} holds neither {_CONFIG} (Hugging Face) nor {PARAMS} (Meta)",
    ),
)
