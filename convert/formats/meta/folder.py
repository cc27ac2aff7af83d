"""A folder of Meta's as a source: consolidated.NN.pth, params.json, checklist.chk, tokenizer.model.

Mistral's releases have the same names and layouts, in consolidated.safetensors.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_llama3.checkpoint.manifest import read_json
from jax_llama3.model.config import Config
from jax_llama3.text.tokenizer import MODEL

from ...source import Source, SourceFile, TensorInfo, check_plain, refuse_all, source_file
from ..pth import PthTensor, read_records, read_tensors
from ..tokenizer import NO_TOKENIZER, model_file_texts
from ..weight_files import CONSOLIDATED, open_weights
from .config import parse_params

PARAMS, CHECKLIST = "params.json", "checklist.chk"
SHARD = "consolidated.{:02}.pth"
_OTHER_FORMATS = ("*.safetensors", "*.gguf", "*.bin")
_ROPE = "rope.freqs"


class SafetensorsTensor(NamedTuple):
    """A tensor of a safetensors file, to be read as those of `.pth` files are."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[str, int, int], np.ndarray]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`."""
        return self.read(self.name, start, stop)


StoredTensor = PthTensor | SafetensorsTensor


def open_meta(
    folder: Path,
    rope_factor: float | None = None,
    on_file: Callable[[SourceFile], None] = lambda file: None,
) -> Source:
    """Read params.json and the headers of every shard; what is off raises ValueError.

    `on_file` is called with each shard before its tensors are looked at.
    """
    sums = _read_checklist(folder)
    params = source_file(folder / PARAMS, md5=sums.get(PARAMS))
    values = read_json(folder / PARAMS)
    try:
        config, decisions = parse_params(values, rope_factor)
    except ValueError as error:
        raise ValueError(f"{folder / PARAMS}: {error}") from None
    if any(folder.glob(CONSOLIDATED.pattern)):
        weight_files, opened = _open_safetensors(folder, sums)
    else:
        weight_files, opened = _open_pth(folder, sums, on_file)
    files = [params, *weight_files]
    shards = [_without_rope(tensors, config, decisions) for tensors in opened]
    if os.path.lexists(folder / "config.json"):
        decisions.append(f"note: config.json is not read; the model is that of {PARAMS}")
    texts: dict[str, bytes] = {}
    if os.path.lexists(folder / MODEL):
        files.append(source_file(folder / MODEL, md5=sums.get(MODEL)))
        texts = model_file_texts((folder / MODEL).read_bytes())
    else:
        decisions.append(NO_TOKENIZER)
    # Whatever else the list names must be as it says, too.
    used = {file.path.name for file in files}
    files += [source_file(folder / name, md5=sums[name]) for name in sorted({*sums} - used)]
    decisions.append("md5 sums as in checklist.chk" if sums else "the source has no checklist.chk")
    joined = _join(shards, config)
    return Source(
        kind="meta",
        config=config,
        tensors={name: info for name, (info, _) in joined.items()},
        read=lambda name, start, stop: joined[name][1](start, stop),
        texts=texts,
        files=files,
        decisions=[*decisions, f"{len(shards)} shards joined"],
    )


def _open_pth(
    folder: Path, sums: dict[str, str], on_file: Callable[[SourceFile], None]
) -> tuple[list[SourceFile], list[dict[str, StoredTensor]]]:
    _refuse_others(folder, _OTHER_FORMATS)
    files = []
    for path in _shard_paths(folder, sums):
        file = source_file(path, md5=sums.get(path.name))
        files.append(file._replace(records=read_records(path)))
        on_file(files[-1])
    _check_order(files)
    return files, [{**read_tensors(file.path, file.records)} for file in files]


def _open_safetensors(
    folder: Path, sums: dict[str, str]
) -> tuple[list[SourceFile], list[dict[str, StoredTensor]]]:
    """The one shard that a set of safetensors files is: each tensor is whole in one of them."""
    _refuse_others(folder, ("consolidated*.pth", "*.gguf", "*.bin"))
    weights = open_weights(folder, CONSOLIDATED)
    if foreign := {p.name for p in folder.glob("*.safetensors")} - {
        f.path.name for f in weights.files
    }:
        raise ValueError(f"{folder} holds a second format, {min(foreign)}; move one away")
    _check_listed(folder, sums, {file.path.name for file in weights.files})
    files = [file._replace(md5=sums.get(file.path.name)) for file in weights.files]
    return files, [
        {
            name: SafetensorsTensor(folder, name, info.dtype, info.shape, weights.read)
            for name, info in weights.tensors.items()
        }
    ]


def _refuse_others(folder: Path, forms: tuple[str, ...]) -> None:
    if others := [path.name for form in forms for path in sorted(folder.glob(form))]:
        raise ValueError(f"{folder} holds a second format, {others[0]}; move one away")


def _check_listed(folder: Path, sums: dict[str, str], names: set[str]) -> None:
    if sums and (unlisted := sorted(names - {*sums})):
        raise ValueError(f"{folder / unlisted[0]} is not in {CHECKLIST}; is it of another model?")


def _read_checklist(folder: Path) -> dict[str, str]:
    """File name to md5; every file that the list names must be there."""
    path = folder / CHECKLIST
    if not os.path.lexists(path):
        return {}
    check_plain(path)
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line]
        sums = {name.removeprefix("*"): bytes.fromhex(md5).hex() for md5, name in lines}
    except ValueError:
        raise ValueError(f"{path}: not a list of md5 sums and file names") from None
    if not sums or len(sums) != len(lines):
        raise ValueError(f"{path}: it is empty, or names a file twice")
    for name in sums:
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} is not a plain file name")
        if not os.path.lexists(folder / name):
            raise FileNotFoundError(f"{folder / name} is missing; {CHECKLIST} names it")
    return sums


def _shard_paths(folder: Path, sums: dict[str, str]) -> list[Path]:
    found = sorted(path.name for path in folder.glob("consolidated*.pth"))
    expected = [SHARD.format(index) for index in range(max(len(found), 1))]
    if missing := sorted({*expected} - {*found}):
        raise FileNotFoundError(
            f"{folder / missing[0]} is missing; shards are numbered from 00 without gaps"
        )
    _check_listed(folder, sums, {*found})
    return [folder / name for name in expected]


def _check_order(shards: list[SourceFile]) -> None:
    """Refuse shards in another order than torch named them in when it saved them.

    Names that are the same for all shards, or not of Meta's form, are let through.
    """
    saved = [file.records[0].name.partition("/")[0] for file in shards]
    if len({*saved}) == len(saved) > 1 and all(
        re.fullmatch(r"consolidated\.\d+", n) for n in saved
    ):
        for file, name in zip(shards, saved, strict=True):
            if file.path.stem != name:
                raise ValueError(f"{file.path}: it was saved as {name}.pth; give it its name back")


def _without_rope(
    tensors: dict[str, StoredTensor], config: Config, decisions: list[str]
) -> dict[str, StoredTensor]:
    """The tensors without RoPE's frequencies, which older files hold; they must be the config's."""
    if _ROPE not in tensors:
        return tensors
    stored = tensors[_ROPE]
    expected = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    given = stored.rows(0, stored.shape[0]).astype(np.float64)
    if given.shape != expected.shape or not np.allclose(given, expected, rtol=0.01, atol=0):
        raise ValueError(
            f"{stored.path}: {_ROPE} contradicts the rope_theta {config.rope_theta} of {PARAMS}"
        )
    decisions.append(
        f"{_ROPE} of {stored.path.name} dropped: RoPE frequencies come from the config"
    )
    return {name: tensor for name, tensor in tensors.items() if name != _ROPE}


Rows = Callable[[int, int], np.ndarray]


def _join(
    shards: list[dict[str, StoredTensor]], config: Config
) -> dict[str, tuple[TensorInfo, Rows]]:
    """Every tensor that the shards hold in parts, as one; those that do not fit are told together."""
    joined = {}
    errors = []
    for name in sorted({name for shard in shards for name in shard}):
        lacking = [index for index, shard in enumerate(shards) if name not in shard]
        if lacking:
            errors.append(f"{name} is missing in {SHARD.format(lacking[0])}")
            continue
        parts = [shard[name] for shard in shards]
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            errors.append(f"{name} differs in shape or dtype between the shards")
            continue
        joined[name] = _join_parts(name, parts, config)
    refuse_all(errors)
    return joined


def _join_parts(name: str, parts: list[StoredTensor], config: Config) -> tuple[TensorInfo, Rows]:
    shape, dtype = parts[0].shape, parts[0].dtype
    if len(shape) == 1:  # a norm, which every shard holds whole
        return TensorInfo(shape, dtype), _copies([parts])
    if name.endswith((".wo.weight", ".w2.weight")):
        whole = (shape[0], sum(part.shape[1] for part in parts))
        return TensorInfo(whole, dtype), lambda start, stop: np.concatenate(
            [part.rows(start, stop) for part in parts], axis=1
        )
    copies = 1
    if name.endswith((".wk.weight", ".wv.weight")):
        # Of 8 heads in 16 shards, every shard holds one, and every second one is a copy.
        copies = max(len(parts) // config.n_kv_heads, 1)
    groups = [parts[index : index + copies] for index in range(0, len(parts), copies)]
    return TensorInfo((shape[0] * len(groups), *shape[1:]), dtype), _copies(groups)


def _copies(groups: list[list[StoredTensor]]) -> Rows:
    """Rows of the groups one after the other; the parts within a group must be equal."""
    height = groups[0][0].shape[0]

    def rows(start: int, stop: int) -> np.ndarray:
        pieces = []
        for index in range(start // height, -(-stop // height)):
            first = max(start - index * height, 0)
            last = min(stop - index * height, height)
            piece, *others = (part.rows(first, last) for part in groups[index])
            for part, other in zip(groups[index][1:], others, strict=True):
                if other.tobytes() != piece.tobytes():
                    raise ValueError(f"{part.path}: {part.name} is not the copy it should be")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return rows
