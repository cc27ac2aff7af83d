"""A LoRA adapter into a converted model: W + scale B A, computed in float32 and rounded once."""

import dataclasses
import math
import os
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_llama3.checkpoint.casting import cast
from jax_llama3.checkpoint.folder import check_output
from jax_llama3.checkpoint.saving import write_model
from jax_llama3.model.config import Config
from jax_llama3.text.tokenizer import JSON, TEMPLATE

from .formats.jax.folder import open_unquantized
from .formats.peft.folder import WEIGHT, A, Adapter, B, open_adapter
from .formats.peft.patterns import Match
from .source import Source, TensorInfo, check_unchanged, hash_files, refuse_all
from .table import NAMES, plan, resolve_tie, rules
from .to_jax import refuse_overlap

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


class Change(NamedTuple):
    """What an adapter does to a matrix or norm: other numbers in its place, or something added."""

    weight: str | None = None  # names of the adapter's tensors
    a: str | None = None
    b: str | None = None
    scaling: float = 0.0


def merge(
    path: str | os.PathLike,
    adapter: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    scale: float = 1.0,
    overwrite: bool = False,
) -> None:
    """Write the model in `path` with a LoRA adapter of PEFT's merged into it as a new model.

    `scale` multiplies what the adapter adds. What is no such adapter, or does not fit the model,
    raises ValueError, an existing output FileExistsError; then nothing is written.
    """
    path, adapter_path, folder = Path(path), Path(adapter), Path(folder)
    if not math.isfinite(scale):
        raise ValueError(f"scale {scale} is not a finite number")
    check_output(folder, overwrite=overwrite)
    for source_path in (path, adapter_path):
        refuse_overlap(source_path, folder)
    base, tokenizer = open_unquantized(path)
    texts = {} if tokenizer is None else tokenizer.files
    opened = open_adapter(adapter_path)
    try:
        merged = resolve_tie(_merged_source(base, opened, scale))
    except ValueError as error:
        raise ValueError(f"{adapter_path}: {error}") from None
    decisions = [*merged.decisions, *_unused_texts(adapter_path, texts)]
    if base.config.tie_embeddings and not merged.config.tie_embeddings:
        decisions.append(
            "note: the output matrix is no longer the embedding, because the adapter changes one "
            "of the two"
        )
    receipt = {
        "source": {"kind": "jax_llama3", "files": hash_files(base.files)},
        "adapter": {
            "kind": "peft",
            "base_model": opened.config.base,
            "scale": scale,
            "files": hash_files(opened.files),
        },
        "decisions": decisions,
    }
    write_model(
        folder,
        merged.config,
        plan(merged, None),
        texts,
        receipt,
        overwrite=overwrite,
        resumable=True,
        check=lambda: check_unchanged(merged.files),
    )


def _unused_texts(folder: Path, texts: dict[str, bytes]) -> list[str]:
    """A note on files of the adapter's folder that differ from the model's own."""
    others = []
    for name in (JSON, TEMPLATE):
        path, own = folder / name, texts.get(name, b"")
        if path.is_file() and (path.stat().st_size != len(own) or path.read_bytes() != own):
            others.append(name)
    if not others:
        return []
    return [
        f"note: {' and '.join(others)} of {folder.name} not used: the merged model has the "
        "tokenizer and the template of the base model"
    ]


def _merged_source(base: Source, adapter: Adapter, scale: float) -> Source:
    """The merged model as a source of Hugging Face's names, whose rows are computed when read."""
    untied = _untied(base.config, adapter)
    config = dataclasses.replace(base.config, tie_embeddings=False) if untied else base.config
    tensors = _tensors(base, config)
    changes = _changes(tensors, adapter, scale)
    if untied and f"{_HEAD}.weight" not in changes and not _is_saved(adapter, _EMBEDDING):
        # PEFT saves an embedding beside its adapter if its rows were changed before training.
        replaced = changes.get(f"{_EMBEDDING}.weight", Change()).weight
        changes[f"{_HEAD}.weight"] = Change(weight=replaced)
    decisions = [*base.decisions, *adapter.config.decisions]
    read = _Merged(base, tensors, adapter, changes).read
    files = [*base.files, *adapter.files]
    return Source("huggingface", config, tensors, read, {}, files, decisions)


def _is_saved(adapter: Adapter, module: str) -> bool:
    """Whether modules_to_save names a module, or one that holds it, as PEFT compares them."""
    around = accumulate(module.split("."), "{}.{}".format)
    return any(outer.endswith(name) for outer in around for name in adapter.config.saved)


def _untied(config: Config, adapter: Adapter) -> bool:
    """Whether the adapter makes two matrices of a tied embedding."""
    if not config.tie_embeddings:
        return False
    embedding, head = (adapter.parts.get(module, {}) for module in (_EMBEDDING, _HEAD))
    found = bool(head) or A in embedding or (bool(embedding) and _is_saved(adapter, _EMBEDDING))
    if found and adapter.config.tied:
        raise ValueError(
            "ensure_weight_tying with an adapter of the embedding is not supported; merge it with "
            "PEFT's merge_and_unload"
        )
    return found


def _tensors(base: Source, config: Config) -> dict[str, TensorInfo]:
    """The model's tensors under Hugging Face's names; a new head is like the embedding."""
    return {
        rule.theirs: base.tensors[rule.ours if rule.ours in base.tensors else "embedding"]
        for rule in rules("huggingface", config)
    }


def _changes(tensors: dict[str, TensorInfo], adapter: Adapter, scale: float) -> dict[str, Change]:
    """What becomes of each tensor; everything that does not fit is told in one error."""
    modules = [name.removesuffix(".weight") for name in tensors]
    matches = adapter.config.matches(modules)
    changes, errors = {}, []
    for module, parts in adapter.parts.items():
        if module not in matches:
            errors += [f"{name} has no place in the model" for name in parts.values()]
            continue
        match, info = matches[module], tensors[f"{module}.weight"]
        errors += _misfits(module, parts, match, info, adapter)
        scaling = scale * adapter.config.scaling_of(match)
        changes[f"{module}.weight"] = Change(parts.get(WEIGHT), parts.get(A), parts.get(B), scaling)
    for module in modules:
        match, parts = matches[module], adapter.parts.get(module, {})
        saved = _is_saved(adapter, module)
        if saved and WEIGHT not in parts:
            errors.append(f"modules_to_save names {module}, but its weight is missing")
        if match.targeted and not saved and A not in parts and _has_two_axes(tensors, module):
            errors.append(f"target_modules names {module}, but its lora_A is missing")
    refuse_all(errors)
    return changes


def _has_two_axes(tensors: dict[str, TensorInfo], module: str) -> bool:
    return len(tensors[f"{module}.weight"].shape) == 2


def _misfits(
    module: str, parts: dict[str, str], match: Match, info: TensorInfo, adapter: Adapter
) -> list[str]:
    """What is wrong with the adapter's parts for one module."""
    errors = []
    saved = _is_saved(adapter, module)
    if WEIGHT in parts and not saved and module not in (_EMBEDDING, _HEAD):
        errors.append(f"{parts[WEIGHT]} is not named by modules_to_save")
    if (A in parts) != (B in parts):
        errors.append(f"{module} has one of lora_A and lora_B, and the other is missing")
    if (A in parts or B in parts) and (saved or not match.targeted):
        name = parts.get(A, parts.get(B))
        errors.append(f"{name} is not named by target_modules")
    expected = {WEIGHT: info.shape}
    if len(info.shape) == 2:
        rank = adapter.config.rank_of(match)
        (rows, columns) = info.shape[::-1] if module == _EMBEDDING else info.shape
        expected |= {A: (rank, columns), B: (rows, rank)}
    for part, name in parts.items():
        found = adapter.tensors[name].shape
        if found != expected.get(part):
            shape = list(expected.get(part, ()))
            errors.append(f"{name} has shape {list(found)}, config and model say {shape}")
    return errors


class _Merged:
    """Rows of merged tensors; of the adapter's A one is in memory, of everything else some rows."""

    def __init__(
        self,
        base: Source,
        tensors: dict[str, TensorInfo],
        adapter: Adapter,
        changes: dict[str, Change],
    ) -> None:
        self._base, self._tensors, self._changes = base, tensors, changes
        self._folder = adapter.files[0].path.parent
        self._shapes = {name: info.shape for name, info in adapter.tensors.items()}
        self._read_weight, self._read_a, self._read_b = (adapter.reader() for _ in range(3))
        table = rules("huggingface", base.config)
        self._ours = {rule.theirs: rule.ours for rule in table}
        self._ours.setdefault(NAMES["huggingface"]["output"], "embedding")
        self._whole: dict[str, np.ndarray] = {}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        change = self._changes.get(name, Change())
        dtype = np.dtype(self._tensors[name].dtype)
        if change.weight is None:
            rows = self._base.read(self._ours[name], start, stop)
        else:
            rows = self._read_weight(change.weight, start, stop)
        if change.a is not None and change.b is not None:
            with np.errstate(all="ignore"):  # what is not finite is refused by name
                added = self._product(name, change.a, change.b, start, stop)
                added *= np.float32(change.scaling)
            if not np.isfinite(added).all():
                raise ValueError(
                    f"{self._folder}: what {change.a} and {change.b} add, times "
                    f"{change.scaling:g}, holds NaN or infinity; the adapter is damaged, or its "
                    "scale is too large"
                )
            rows = rows.astype(np.float32) + added
        return cast(name, rows, dtype)

    def _product(self, name: str, a: str, b: str, start: int, stop: int) -> np.ndarray:
        """Rows of B A, or of its transpose for the embedding, whose A has a column for each token."""
        wide = partial(np.asarray, dtype=np.float32)
        if name == f"{_EMBEDDING}.weight":
            return wide(self._kept(a)[:, start:stop]).T @ wide(self._kept(b)).T
        return wide(self._read_b(b, start, stop)) @ wide(self._kept(a))

    def _kept(self, tensor: str) -> np.ndarray:
        """A whole tensor of the adapter, kept until those of another module are read."""
        if tensor not in self._whole:
            module = tensor.partition(".lora_")[0]
            kept = {k: v for k, v in self._whole.items() if k.partition(".lora_")[0] == module}
            kept[tensor] = self._read_a(tensor, 0, self._shapes[tensor][0])
            self._whole = kept
        return self._whole[tensor]
