"""GPTQ weights: packed along the input, with a scale and a zero point for each group of inputs."""

from functools import partial
from typing import NamedTuple

import numpy as np

from ...source import refuse_all
from .matrix import (
    Found,
    Matrix,
    Tensors,
    check_keys,
    collect,
    expect,
    expect_matrix,
    flag,
    integer,
    modules_with,
    unsupported,
)
from .stored import Part
from .words import FLOATS, dequantize, unpack, unpack_span

_BITS = (2, 4, 8)  # those of which a word holds a whole number
_WITHOUT_EFFECT = (
    "quant_method",
    "act_group_aware",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "disable_exllama",
    "exllama_config",
    "is_marlin_format",
    "lm_head",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "modules_to_not_convert",
    "mse",
    "pad_token_id",
    "static_groups",
    "sym",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
)
_USED = (
    "bits",
    "checkpoint_format",
    "desc_act",
    "dynamic",
    "format",
    "group_size",
    "pack_dtype",
    "rotation",
)


class _Stored(NamedTuple):
    """The module, the shape of its weight, and how it is packed."""

    module: str
    shape: tuple[int, int]
    bits: int
    group_size: int
    ordered: bool  # whether g_idx is to be followed
    first_version: bool


def find(config: dict, tensors: Tensors, part: Part) -> Found:
    """Weights as AutoGPTQ and GPTQModel store them: `qweight`, `qzeros`, `scales`, `g_idx`."""
    check_keys(config, (*_WITHOUT_EFFECT, *_USED), "quantization_config")
    bits, size = integer(config, "bits"), integer(config, "group_size", 128)
    if bits not in _BITS:
        raise unsupported(f"gptq with {bits} bits", " and ".join(map(str, _BITS)))
    if size != -1 and size < 1:
        raise ValueError(f"quantization_config: group_size {size} is no size; -1 means one group")
    first_version = _is_first_version(config)
    desc_act = flag(config, "desc_act", False)

    def make(module: str) -> Matrix:
        return _matrix(module, tensors, bits, size, desc_act, first_version)

    matrices, errors = collect(modules_with(tensors, "qweight"), make)
    refuse_all(errors)
    groups = "one group" if size == -1 else f"groups of {size}"
    order = ", act-order" if desc_act else ""
    version = "gptq" if first_version else "gptq_v2"
    return Found(f"{version} ({bits} bits, {groups}{order})", matrices)


def zero_points(stored: np.ndarray, bits: int, first_version: bool, name: str) -> np.ndarray:
    """Zero points as they are meant; the first version of the format stores them less one.

    In that one the largest number stands for either 0 or the largest zero point and one: programs
    differ in what they make of it, and it is refused.
    """
    if not first_version:
        return stored
    if (stored == (1 << bits) - 1).any():
        raise ValueError(
            f"{name} holds the zero point {(1 << bits) - 1}, which checkpoint_format 'gptq' cannot "
            "tell from -1; save it again as gptq_v2"
        )
    return stored + np.float32(1)


def group_of_inputs(indices: np.ndarray, size: int, groups: int, name: str) -> np.ndarray:
    """The group of each input; a file that does not use its g_idx may hold zeros alone."""
    if groups > 1 and not indices.any():
        return np.arange(indices.size) // size
    if indices.min() < 0 or indices.max() >= groups:
        raise ValueError(f"{name} names a group that is not among the {groups} of the scales")
    return indices


def _rows(stored: _Stored, part: Part, start: int, stop: int) -> np.ndarray:
    module, bits, inputs = stored.module, stored.bits, stored.shape[1]
    weights = unpack(np.array(part(f"{module}.qweight")[:, start:stop]), bits, 0)
    packed = unpack_span(part(f"{module}.qzeros"), bits, 1, range(start, stop))
    zeros = zero_points(packed, bits, stored.first_version, f"{module}.qzeros")
    scales = np.array(part(f"{module}.scales")[:, start:stop])
    groups = np.arange(inputs) // stored.group_size
    if stored.ordered:
        name = f"{module}.g_idx"
        groups = group_of_inputs(part(name), stored.group_size, len(scales), name)
    return dequantize(weights, zeros, scales, groups)


def _matrix(
    module: str, tensors: Tensors, bits: int, size: int, desc_act: bool, first_version: bool
) -> Matrix:
    packed = expect_matrix(tensors, f"{module}.qweight", ("int32",))
    count = 32 // bits
    inputs, outputs = packed[0] * count, packed[1]
    if outputs % count:
        raise ValueError(f"{module}.qweight has {outputs} columns, no multiple of {count}")
    group_size = inputs if size == -1 else min(size, inputs)
    groups = -(-inputs // group_size)
    names = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]
    expect(tensors, names[1], ("int32",), (groups, outputs // count))
    dtype = expect(tensors, names[2], FLOATS, (groups, outputs)).dtype
    ordered = f"{module}.g_idx" in tensors or desc_act
    if ordered:
        names.append(f"{module}.g_idx")
        expect(tensors, names[3], ("int32", "int64"), (inputs,))
    shape = outputs, inputs
    stored = _Stored(module, shape, bits, group_size, ordered, first_version)
    return Matrix(f"{module}.weight", shape, dtype, tuple(names), partial(_rows, stored))


def _is_first_version(config: dict) -> bool:
    """Whether zero points are stored less one; other formats than the two are refused."""
    named = {
        str(config[key]) for key in ("checkpoint_format", "format") if config.get(key) is not None
    }
    if config.get("is_marlin_format"):
        named.add("marlin")
    if unknown := sorted(str(name) for name in named - {"gptq", "gptq_v2"}):
        raise unsupported(f"gptq with checkpoint_format {unknown[0]!r}", "'gptq' and 'gptq_v2'")
    if len(named) > 1:
        raise ValueError("quantization_config: checkpoint_format and format contradict each other")
    if config.get("pack_dtype", "int32") not in ("int32", None):
        raise unsupported(f"gptq with pack_dtype {config['pack_dtype']!r}", "'int32'")
    if config.get("rotation"):
        raise unsupported(f"gptq with rotation {config['rotation']!r}", "none")
    changes = config.get("dynamic") or {}
    if not isinstance(changes, dict) or not all(str(key).startswith("-:") for key in changes):
        raise unsupported("gptq with dynamic settings for single modules", "one for all")
    return named != {"gptq_v2"}
