"""Which method a repository is quantised with, and its tensors as if it were not quantised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...source import TensorInfo
from ..weight_files import Weights
from . import awq, bitsandbytes, fp8, gptq, packed
from .matrix import Found, Matrix, Tensors, unsupported
from .stored import PLAIN, STORED, Mapping, as_dtype

_CONFIG = ("quantization_config", "compression_config")  # the second is the older name
METHODS = {
    "fbgemm_fp8": fp8.find_fbgemm,
    "fp8": fp8.find_blocks,
    "compressed-tensors": packed.find,
    "gptq": gptq.find,
    "awq": awq.find,
    "bitsandbytes": bitsandbytes.find,
}
# Where the methods list modules that are not quantised.
_IGNORED = ("ignore", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules")
KEPT = "bfloat16"  # what such a source is stored in where the user names no dtype
# As many numbers are dequantised at once; the memory that this takes is some times their size.
_CHUNK = 1 << 18
Read = Callable[[str, int, int], np.ndarray]


def quantization_of(values: dict) -> dict | None:
    """What a config.json says about quantised weights; None if it says nothing."""
    given = [values[key] for key in _CONFIG if values.get(key) is not None]
    if not given:
        return None
    if not all(isinstance(config, dict) for config in given):
        raise ValueError(f"quantization_config {given[0]!r} is no object")
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError("quantization_config and compression_config contradict each other")
    return given[0]


def readable_dtypes(values: dict) -> dict[str, str]:
    """The dtypes that the weights of such a config may be stored in, and numpy's names for them."""
    return STORED if any(values.get(key) is not None for key in _CONFIG) else PLAIN


def dequantized(folder: Path, values: dict, weights: Weights) -> Weights:
    """The weights of a repository as plain ones, which are dequantised where they are read.

    `values` are those of config.json. Weights that are not quantised come back as they are. What is
    not supported, or does not fit together, raises ValueError.
    """
    try:
        config = quantization_of(values)
        if config is None:
            return weights
        found = _dequantized(config, weights.tensors, weights.read, Mapping(weights.paths))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    tensors, read, notes = found
    return weights._replace(tensors=tensors, read=read, decisions=[*weights.decisions, *notes])


def _dequantized(
    config: dict, tensors: Tensors, read: Read, mapping: Mapping
) -> tuple[Tensors, Read, list[str]]:
    found = _find(config, tensors, mapping)
    mapping.release()
    if not found.matrices:
        raise ValueError(
            f"quantization_config says {found.what}, but no weight is stored so; "
            "delete it if the weights are plain"
        )
    _check_ignored(config, found)
    matrices = {matrix.name: matrix for matrix in found.matrices}
    used = {part for matrix in found.matrices for part in matrix.parts}
    dropped, rest = _without_effect(found, matrices, tensors, used, read)
    if twice := sorted(set(rest) & set(matrices)):
        raise ValueError(f"{twice[0]} is stored twice, plain and quantised; remove one of them")
    plain = {name: tensors[name]._replace(kept=KEPT) for name in rest}
    made = {m.name: TensorInfo(m.shape, m.dtype, KEPT) for m in found.matrices}
    notes = _notes(config, found, dropped)
    return {**plain, **made}, _reader(matrices, mapping, read), notes


def _find(config: dict, tensors: Tensors, mapping: Mapping) -> Found:
    method = config.get("quant_method")
    if method is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        method = "bitsandbytes"
    if not isinstance(method, str) or method not in METHODS:
        bits = config.get("bits", config.get("w_bit"))
        width = "" if bits is None else f" with {bits} bits"
        raise unsupported(
            f"quantization_config: quant_method {method!r}{width}", ", ".join(METHODS)
        )
    return METHODS[method](config, tensors, mapping.part)


def _check_ignored(config: dict, found: Found) -> None:
    """Refuse a module that is stored quantised although the config names it as left alone."""
    lists = [config.get(key) for key in _IGNORED]
    ignored = {name for names in lists if isinstance(names, list) for name in map(str, names)}
    for matrix in found.matrices:
        if (module := matrix.name.removesuffix(".weight")) in ignored:
            raise ValueError(
                f"{matrix.name} is stored quantised, but quantization_config says that {module} "
                "is not; one of the two is wrong"
            )


def _without_effect(
    found: Found, matrices: dict[str, Matrix], tensors: Tensors, used: set[str], read: Read
) -> tuple[list[str], list[str]]:
    """Of the tensors that make no matrix: those that change nothing, and those that are plain."""
    dropped, rest = [], []
    for name in [name for name in tensors if name not in used]:
        module, _, ending = name.rpartition(".")
        if ending in found.without_effect or (
            ending == "bias" and f"{module}.weight" in matrices and _is_zero(name, tensors, read)
        ):
            dropped.append(name)
        elif tensors[name].dtype not in PLAIN.values():
            raise ValueError(
                f"{name} is {tensors[name].dtype} and belongs to no weight of {found.what}"
            )
        else:
            rest.append(name)
    return dropped, rest


def _is_zero(name: str, tensors: Tensors, read: Read) -> bool:
    """Whether a bias does nothing; some programs store one for layers that have none."""
    info = tensors[name]
    is_plain = info.dtype in PLAIN.values() and len(info.shape) == 1
    return is_plain and not read(name, 0, info.shape[0]).any()


def _reader(matrices: dict[str, Matrix], mapping: Mapping, read: Read) -> Read:
    """Rows of matrices as they are dequantised, and of the other tensors as they are."""
    current = ""

    def read_plain(name: str, start: int, stop: int) -> np.ndarray:
        nonlocal current
        if name != current:
            mapping.release()
            current = name
        matrix = matrices.get(name)
        if matrix is None:
            return read(name, start, stop)
        rows = np.empty((stop - start, matrix.shape[1]), as_dtype(matrix.dtype))
        step = max(_CHUNK // matrix.shape[1], 1)
        with np.errstate(all="ignore"):  # what is not finite is refused later, by name
            for first in range(start, stop, step):
                last = min(first + step, stop)
                rows[first - start : last - start] = matrix.rows(mapping.part, first, last)
        return rows

    return read_plain


def _notes(config: dict, found: Found, dropped: list[str]) -> list[str]:
    dtypes = sorted({matrix.dtype for matrix in found.matrices} - {KEPT})
    exact = f"; --dtype {dtypes[0]} keeps all digits" if len(dtypes) == 1 else ""
    notes = [
        f"note: {len(found.matrices)} matrices of {found.what} are dequantised; "
        f"without --dtype the model is stored as {KEPT}{exact}"
    ]
    if dropped:
        notes.append(
            f"note: {len(dropped)} tensors such as {dropped[0]} are dropped; they change no weight"
        )
    if _quantises_activations(config):
        notes.append("note: the repository quantises activations too; here they are not quantised")
    return notes


def _quantises_activations(config: dict[str, Any]) -> bool:
    groups = config.get("config_groups")
    inputs = groups.values() if isinstance(groups, dict) else ()
    keys = ("input_activations", "output_activations")
    return (
        "activation_scale_ub" in config
        or config.get("activation_scheme") is not None
        or config.get("kv_cache_scheme") is not None
        or any(isinstance(group, dict) and any(map(group.get, keys)) for group in inputs)
    )
