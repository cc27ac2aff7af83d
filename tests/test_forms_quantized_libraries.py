"""Dequantised weights equal, bit for bit, what the formats' own libraries make of the same tensors."""

from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from quantized_repositories import (
    FP8,
    Form,
    Tensors,
    awq,
    fp8_blocks,
    fp8_matrix,
    fp8_rows,
    write_repository,
)

from convert.formats.huggingface.folder import open_huggingface

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.reference,
    # The libraries' own: what they warn of is not what is compared.
    pytest.mark.filterwarnings("ignore"),
]


def numpy_of(tensor: Any) -> np.ndarray:
    """A tensor's bytes, in dtypes that numpy has from ml_dtypes too."""
    special = {
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, FP8),
    }
    if tensor.dtype not in special:
        return tensor.detach().contiguous().numpy()
    between, wanted = special[tensor.dtype]
    return tensor.detach().contiguous().view(between).numpy().view(wanted)


def torch_of(array: np.ndarray) -> Any:
    if array.dtype == FP8:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array)


def assert_equal_bits(tmp_path: Path, form: Form, *, dtype: str | None = None) -> None:
    """What is read, in uneven pieces, is what the form's library says, in its dtype."""
    meant = write_repository(tmp_path / "source", form)
    source = open_huggingface(tmp_path / "source")
    for name, expected in meant.items():
        rows = len(expected)
        pieces = [source.read(name, first, min(first + 27, rows)) for first in range(0, rows, 27)]
        found = np.concatenate(pieces)
        assert found.dtype == expected.dtype, name
        assert source.tensors[name].dtype == expected.dtype.name, name
        if dtype is not None and name.endswith("proj.weight"):
            assert expected.dtype.name == dtype
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), name


def by_torch(quantise: Any, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """FP8 decoded and multiplied by torch."""
    stored, _ = quantise(weight)
    scale = torch_of(stored["weight_scale"]).to(torch.float32)
    return stored, numpy_of(torch_of(stored["weight"]).to(torch.float32) * scale)


@pytest.mark.parametrize("quantise", [fp8_rows, fp8_matrix])
def test_fp8_with_a_scale_a_row_or_a_matrix_equals_torch(tmp_path: Path, quantise: Any) -> None:
    method = {fp8_rows: "fbgemm_fp8", fp8_matrix: "fp8"}[quantise]
    form = Form({"quant_method": method}, partial(by_torch, quantise))
    assert_equal_bits(tmp_path, form)


BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def test_fp8_blocks_equal_compressed_tensors_also_where_they_are_partial(tmp_path: Path) -> None:
    converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters")
    converter = converters.FP8BlockDequantizer(
        targets=["Linear"], weight_block_size=(128, 128), dtype=torch.float32
    )

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        stored, _ = fp8_blocks(weight)
        tensors = {f"layer.{name}": torch_of(value) for name, value in stored.items()}
        return stored, numpy_of(converter.process(tensors)["layer.weight"])

    assert_equal_bits(tmp_path, Form(BLOCKS, quantise))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_blocks_equal_transformers_in_either_dtype(tmp_path: Path, dtype: str) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    from jax_llama3.checkpoint.casting import cast

    meant = {}

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        stored, ours = fp8_blocks(weight)
        if weight.shape[0] % 128 == 0 and weight.shape[1] % 128 == 0:  # it knows no partial blocks
            parts = (torch_of(stored[name]) for name in ("weight", "weight_scale_inv"))
            theirs = Fp8Dequantize(None)._dequantize_one(*parts, output_dtype=getattr(torch, dtype))
            meant[weight.tobytes()] = numpy_of(theirs)
            assert cast("", ours, theirs_dtype).tobytes() == meant[weight.tobytes()].tobytes()
        return stored, ours

    theirs_dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype]
    assert_equal_bits(tmp_path, Form(BLOCKS, quantise))
    assert len(meant) == 2


# format, bits, type, strategy, symmetric
COMPRESSED = [
    ("float-quantized", 8, "float", "tensor", True),
    ("float-quantized", 8, "float", "channel", True),
    ("float-quantized", 8, "float", "block", True),
    ("float-quantized", 8, "float", "block as older versions wrote it", True),
    ("naive-quantized", 8, "float", "group", True),
    ("int-quantized", 8, "int", "tensor", True),
    ("int-quantized", 8, "int", "tensor", False),
    ("int-quantized", 8, "int", "channel", True),
    ("int-quantized", 8, "int", "channel", False),
    ("int-quantized", 8, "int", "group", False),
    ("pack-quantized", 4, "int", "group", True),
    ("pack-quantized", 4, "int", "group", False),
    ("pack-quantized", 4, "int", "channel", True),
    ("pack-quantized", 4, "int", "channel", False),
    ("pack-quantized", 4, "int", "tensor", True),
    ("pack-quantized", 8, "int", "group", False),
    ("pack-quantized", 2, "int", "group", False),
]
SIZES = {
    "group": {"group_size": 64},
    "block": {"block_structure": [128, 128]},
    "block as older versions wrote it": {"block_structure": "128x128"},
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("form", "bits", "kind", "strategy", "symmetric"),
    COMPRESSED,
    ids=["-".join(map(str, case)) for case in COMPRESSED],
)
def test_compressed_tensors_equal_their_library(
    tmp_path: Path, form: str, bits: int, kind: str, strategy: str, symmetric: bool, dtype: str
) -> None:
    weights = {
        "num_bits": bits,
        "type": kind,
        "strategy": strategy.split()[0],
        "symmetric": symmetric,
        **SIZES.get(strategy, {}),
    }
    quantise = partial(_compress, form, weights, getattr(torch, dtype))
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    assert_equal_bits(tmp_path, Form(config, quantise), dtype=dtype)


def _compress(
    form: str, weights: dict, dtype: Any, weight: np.ndarray
) -> tuple[Tensors, np.ndarray]:
    """A matrix compressed and decompressed by the library, with scales that are made here."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    rows, columns = weight.shape
    height, width = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, 64),
        "block": (128, 128),
    }[weights["strategy"]]
    rng = np.random.default_rng(weight.size)
    grid = (-(-rows // height), -(-columns // width))
    steps = 448 if weights["type"] == "float" else 2 ** (weights["num_bits"] - 1) - 0.5
    scale = np.abs(weight).max() / steps * rng.uniform(0.5, 1.5, grid)
    state = {
        "weight": torch.from_numpy(weight).to(dtype),
        "weight_scale": torch.from_numpy(scale).to(dtype),
    }
    if not weights["symmetric"]:
        low = 2 ** (weights["num_bits"] - 1)
        zero = rng.integers(-low, low, grid).astype(np.int8)
        state["weight_zero_point"] = torch.from_numpy(zero)
    if weights["strategy"] == "tensor":
        state |= {name: state[name].reshape(1) for name in state if name != "weight"}
    stored = compressor.compress(state, scheme)
    meant = compressor.decompress(stored, scheme)["weight"]
    return {name: numpy_of(tensor) for name, tensor in stored.items()}, numpy_of(meant)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_of_bitsandbytes_equal_their_library(
    tmp_path: Path, kind: str, nested: bool, dtype: str
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        tensor = torch.from_numpy(weight).to(getattr(torch, dtype))
        packed, state = functional.quantize_4bit(
            tensor, quant_type=kind, compress_statistics=nested, blocksize=64
        )
        stored = {"weight": numpy_of(packed)}
        for name, value in state.as_dict(packed=True).items():
            stored[f"weight.{name}"] = numpy_of(value)
        return stored, numpy_of(functional.dequantize_4bit(packed, state))

    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
    }
    assert_equal_bits(tmp_path, Form(config, quantise), dtype=dtype)


@pytest.mark.parametrize("block_size", [32, 256, 4096])
@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
def test_other_block_sizes_and_storage_of_bitsandbytes_equal_their_library(
    tmp_path: Path, block_size: int, storage: str
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        packed, state = functional.quantize_4bit(
            torch.from_numpy(weight).to(torch.bfloat16),
            quant_type="nf4",
            blocksize=block_size,
            quant_storage=getattr(torch, storage),
        )
        stored = {"weight": numpy_of(packed)}
        for name, value in state.as_dict(packed=True).items():
            stored[f"weight.{name}"] = numpy_of(value)
        return stored, numpy_of(functional.dequantize_4bit(packed, state))

    config = {"load_in_4bit": True, "bnb_4bit_quant_storage": storage}
    assert_equal_bits(tmp_path, Form(config, quantise))


def test_eight_bits_of_bitsandbytes_equal_their_library(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        values, largest, _ = functional.int8_vectorwise_quant(
            torch.from_numpy(weight).to(torch.float16)
        )
        stored = {
            "weight": numpy_of(values),
            "SCB": numpy_of(largest),
            "weight_format": np.zeros((), np.uint8),
        }
        return stored, numpy_of(functional.int8_vectorwise_dequant(values, largest))

    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert_equal_bits(tmp_path, Form(config, quantise))


@pytest.mark.parametrize("zeros", ["drawn", "absent"])
def test_awq_equals_what_compressed_tensors_makes_of_it(tmp_path: Path, zeros: str) -> None:
    module = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    converter = module.AutoAWQConverter(group_size=64, zero_point=zeros == "drawn")
    scheme = converter.update_config(None).config_groups["config_group_0"]
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")

    def quantise(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        stored, _ = awq(64, zeros)(weight)
        tensors = {f"layer.{name}": torch_of(value) for name, value in stored.items()}
        packed = converter.process(tensors)
        state = {name.removeprefix("layer."): value for name, value in packed.items()}
        return stored, numpy_of(compressor.decompress(state, scheme)["weight"])

    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": zeros == "drawn"}
    assert_equal_bits(tmp_path, Form(config, quantise), dtype="float16")
