"""Small Hugging Face repositories whose matrices are quantised, and what each matrix then is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from checkpoints import V4, hf_tensors
from random_models import TINY, replace, sharp_params

BF16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
# Partial blocks of 128 in both directions: k and v have 64 rows, the feed-forward width is 320.
SMALL = replace(TINY, dim=256, n_layers=1, n_heads=8, n_kv_heads=2, head_dim=32, ffn_dim=320)
CONFIG = V4 | {
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 320,
}
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}
Tensors = dict[str, np.ndarray]


class Form(NamedTuple):
    """A way of quantising: its config, and what makes of a matrix its tensors and what they mean."""

    config: dict
    quantise: Callable[[np.ndarray], tuple[Tensors, np.ndarray]]


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """A file with dtypes that the library cannot write from numpy's arrays."""
    header, data = {}, b""
    for name, array in tensors.items():
        begin, data = len(data), data + np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, len(data)],
        }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_repository(
    folder: Path, form: Form, *, seed: int = 0, more: Tensors | None = None
) -> Tensors:
    """A repository of one layer; returns its plain tensors, the quantised ones as what they mean."""
    stored, plain = {}, {}
    for name, array in hf_tensors(sharp_params(seed, SMALL)).items():
        if not name.endswith("proj.weight"):
            stored[name] = plain[name] = array.astype(BF16)
            continue
        module = name.removesuffix(".weight")
        parts, plain[name] = form.quantise(array)
        stored |= {f"{module}.{part}": value for part, value in parts.items()}
    folder.mkdir(parents=True)
    config = CONFIG | {"quantization_config": form.config}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", stored | (more or {}))
    return plain


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Rows of unsigned numbers as int32 words, number by number, the first in the lowest bits."""
    rows, columns = numbers.shape
    count = 32 // bits
    words = np.zeros((rows, -(-columns // count)), np.uint32)
    for column in range(columns):
        place = np.uint32(bits * (column % count))
        words[:, column // count] |= numbers[:, column].astype(np.uint32) << place
    return words.view(np.int32)


def fp8_rows(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """fbgemm's: each row divided by its largest number / 448."""
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(448)
    values = (weight / scale).astype(FP8)
    return {"weight": values, "weight_scale": scale}, decode_fp8(values) * scale


def fp8_blocks(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """DeepSeek's: blocks of 128 x 128, those at the borders partial."""
    rows, columns = weight.shape
    scale = np.zeros((-(-rows // 128), -(-columns // 128)), np.float32)
    values, meant = np.zeros(weight.shape, FP8), np.zeros(weight.shape, np.float32)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scale[i, j] = np.abs(weight[block]).max() / np.float32(448)
            values[block] = (weight[block] / scale[i, j]).astype(FP8)
            meant[block] = decode_fp8(values[block]) * scale[i, j]
    return {"weight": values, "weight_scale_inv": scale}, meant


def fp8_matrix(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """One scale for the matrix, and one for what it is multiplied with."""
    scale = np.float32(np.abs(weight).max() / 448)
    values = (weight / scale).astype(FP8)
    stored = {"weight": values, "weight_scale": scale.reshape(1), "input_scale": scale.reshape(1)}
    return stored, decode_fp8(values) * scale


def decode_fp8(values: np.ndarray) -> np.ndarray:
    """8-bit floats from their bits: a sign, four of the exponent with bias 7, three of the fraction."""
    bits = values.view(np.uint8).astype(np.int64)
    exponent, fraction = (bits >> 3) & 15, bits & 7
    normal = (8 + fraction) * 2.0 ** (exponent - 10)
    size = np.where(exponent == 0, fraction * 2.0**-9, normal)
    return np.where(bits >= 128, -size, size).astype(np.float32)


def gptq(
    bits: int,
    group_size: int,
    *,
    version: int = 1,
    ordered: bool = False,
    bias: bool = False,
    index: bool = True,
    dtype: type = np.float16,
) -> Callable[[np.ndarray], tuple[Tensors, np.ndarray]]:
    """AutoGPTQ's layout, weights drawn at random: what they mean is computed number by number."""

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        rng = np.random.default_rng(weight.size)
        outputs, inputs = weight.shape
        size = inputs if group_size == -1 else group_size
        groups = -(-inputs // size)
        largest = (1 << bits) - 1
        numbers = rng.integers(0, largest + 1, (inputs, outputs))
        # The first version stores one less, and what would be -1 has no place in it.
        zeros = rng.integers(version == 1, largest + 1, (groups, outputs))
        scales = (rng.uniform(0.5, 1.5, (groups, outputs)) / largest / 16).astype(dtype)
        order = np.arange(inputs) // size
        if ordered:
            order = rng.permutation(order)
        stored = {
            "qweight": np.ascontiguousarray(pack(numbers.T, bits).T),
            "qzeros": pack(zeros - (version == 1), bits),
            "scales": scales,
        }
        if index:
            stored["g_idx"] = order.astype(np.int32)
        if bias:
            stored["bias"] = np.zeros(outputs, np.float16)
        return stored, _one_by_one(numbers, zeros, scales, order)

    return quantise


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each place of a word, from the lowest bits on


def awq(
    group_size: int, zeros: str = "drawn"
) -> Callable[[np.ndarray], tuple[Tensors, np.ndarray]]:
    """AutoAWQ's GEMM layout, weights drawn at random: what they mean is computed number by number.

    `zeros` are drawn, or the middle, or absent.
    """

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        rng = np.random.default_rng(weight.size)
        outputs, inputs = weight.shape
        size = inputs if group_size == -1 else group_size
        groups = inputs // size
        numbers = rng.integers(0, 16, (inputs, outputs))
        points = rng.integers(0, 16, (groups, outputs))
        if zeros != "drawn":
            points[:] = 8
        scales = (rng.uniform(0.5, 1.5, (groups, outputs)) / 240).astype(np.float16)
        stored = {"qweight": pack(_interleaved(numbers), 4), "scales": scales}
        if zeros != "absent":
            stored["qzeros"] = pack(_interleaved(points), 4)
        return stored, _one_by_one(numbers, points, scales, np.arange(inputs) // size)

    return quantise


def _interleaved(numbers: np.ndarray) -> np.ndarray:
    words = numbers.reshape(len(numbers), -1, 8)
    return np.stack([words[:, :, output] for output in AWQ_ORDER], 2).reshape(numbers.shape)


def _one_by_one(
    numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """[in out] to [out in], a number at a time along the inputs, each product rounded once."""
    meant = np.zeros(numbers.shape[::-1], scales.dtype)
    for row, group in enumerate(order):
        exact = (numbers[row] - zeros[group]) * scales[group].astype(np.float64)
        meant[:, row] = exact.astype(scales.dtype)
    return meant
