"""AWQ weights in AutoAWQ's GEMM layout: 4 bits, packed along the output in an interleaved order."""

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
from .words import FLOATS, dequantize, unpack_span

_BITS = 4
_MIDDLE = np.float32(8)
# The places of a word hold the outputs 0 2 4 6 1 3 5 7; so output 1 is in place 4, output 2 in place 1.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_KEYS = (
    "quant_method",
    "backend",
    "bits",
    "checkpoint_format",
    "desc_act",
    "do_fuse",
    "exllama_config",
    "format",
    "fuse_max_seq_len",
    "group_size",
    "lm_head",
    "meta",
    "modules_to_fuse",
    "modules_to_not_convert",
    "pack_dtype",
    "sym",
    "version",
    "zero_point",
)


class _Stored(NamedTuple):
    """The module, and how its weight is packed."""

    module: str
    group_size: int
    zero_point: bool
    has_zeros: bool


def find(config: dict, tensors: Tensors, part: Part) -> Found:
    """Weights as AutoAWQ's GEMM version stores them: `qweight`, `qzeros`, `scales`.

    Without `zero_point` the zero point is the middle, 8, and zero points in the file must say the same.
    """
    check_keys(config, _KEYS, "quantization_config")
    bits, size = integer(config, "bits", _BITS), integer(config, "group_size", 128)
    versions = [config.get(key) for key in ("version", "format", "checkpoint_format")]
    for version in [version for version in versions if version is not None]:
        if str(version).lower() != "gemm":
            raise unsupported(f"awq in the layout {version!r}", "'gemm'")
    if bits != _BITS or config.get("pack_dtype", "int32") not in ("int32", None):
        raise unsupported(f"awq with {bits} bits", f"{_BITS} in words of int32")
    if flag(config, "desc_act", False):
        raise unsupported("awq with desc_act", "without")
    if size != -1 and size < 1:
        raise ValueError(f"quantization_config: group_size {size} is no size; -1 means one group")

    zero_point = flag(config, "zero_point", True)

    def make(module: str) -> Matrix:
        return _matrix(module, tensors, size, zero_point)

    matrices, errors = collect(modules_with(tensors, "qweight"), make)
    refuse_all(errors)
    groups = "one group" if size == -1 else f"groups of {size}"
    symmetry = "" if zero_point else ", no zero points"
    return Found(f"awq ({bits} bits, {groups}{symmetry})", matrices)


def unpack_outputs(words: np.ndarray, span: range) -> np.ndarray:
    """The numbers of some outputs, as float32, of words that are packed along the output.

    The word 0x76543210 holds 0 4 1 5 2 6 3 7 for the outputs 0 to 7.
    """
    return unpack_span(words, _BITS, 1, span, _PLACES)


def _rows(stored: _Stored, part: Part, start: int, stop: int) -> np.ndarray:
    module, span = stored.module, range(start, stop)
    weights = unpack_outputs(part(f"{module}.qweight"), span)
    scales = np.array(part(f"{module}.scales")[:, start:stop])
    if stored.has_zeros:
        zeros = unpack_outputs(part(f"{module}.qzeros"), span)
    else:
        zeros = np.full(scales.shape, _MIDDLE, np.float32)
    if not stored.zero_point and (zeros != _MIDDLE).any():
        raise ValueError(
            f"{module}.qzeros holds zero points, but quantization_config says zero_point false; "
            "one of the two is wrong"
        )
    groups = np.arange(len(weights)) // stored.group_size
    return dequantize(weights, zeros, scales, groups)


def _matrix(module: str, tensors: Tensors, size: int, zero_point: bool) -> Matrix:
    names = [f"{module}.{part}" for part in ("qweight", "scales", "qzeros")]
    packed = expect_matrix(tensors, names[0], ("int32",))
    inputs, outputs = packed[0], packed[1] * (32 // _BITS)
    group_size = inputs if size == -1 else size
    if inputs % group_size:
        raise ValueError(f"{names[0]} has {inputs} rows, which are no groups of {group_size}")
    groups = inputs // group_size
    dtype = expect(tensors, names[1], FLOATS, (groups, outputs)).dtype
    has_zeros = zero_point or names[2] in tensors
    if has_zeros:
        expect(tensors, names[2], ("int32",), (groups, packed[1]))
    names = names if has_zeros else names[:2]
    shape, stored = (outputs, inputs), _Stored(module, group_size, zero_point, has_zeros)
    return Matrix(f"{module}.weight", shape, dtype, tuple(names), partial(_rows, stored))
