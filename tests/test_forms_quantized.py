"""Quantised Hugging Face repositories are read as the plain matrices that they mean."""

import copy
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import bits, write_folder
from quantized_repositories import (
    BF16,
    CONFIG,
    FP8,
    Form,
    awq,
    decode_fp8,
    fp8_blocks,
    fp8_matrix,
    fp8_rows,
    gptq,
    pack,
    write_repository,
    write_safetensors,
)

from convert import to_jax as to_jax_module
from convert.compare.comparison import compare
from convert.formats.huggingface.folder import open_huggingface
from convert.formats.quantized import awq as awq_format
from convert.formats.quantized import bitsandbytes, fp8, packed
from convert.formats.quantized import gptq as gptq_format
from convert.formats.quantized.stored import Mapping
from convert.formats.quantized.words import dequantize, spread, unpack, unpack_span
from convert.inspection import inspect
from convert.source import TensorInfo
from convert.to_jax import open_source
from jax_llama3 import Model, forward, load
from jax_llama3.checkpoint.manifest import read_manifest

FBGEMM = {
    "quant_method": "fbgemm_fp8",
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": ["lm_head"],
}
BLOCKS = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
V2 = {"checkpoint_format": "gptq_v2"}
FORMS = {
    "fbgemm_fp8": Form(FBGEMM, fp8_rows),
    "fp8-blocks": Form(BLOCKS, fp8_blocks),
    "fp8-without-its-kind": Form(BLOCKS | {"fmt": None}, fp8_blocks),
    "fp8-matrix": Form({"quant_method": "fp8", "activation_scheme": "static"}, fp8_matrix),
    "gptq": Form(GPTQ, gptq(4, 64)),
    "gptq-no-g_idx": Form(GPTQ, gptq(4, 64, index=False)),
    "gptq-biases": Form(GPTQ, gptq(4, 64, bias=True)),
    "gptq-partial-group": Form(GPTQ | {"group_size": 128}, gptq(4, 128)),
    "gptq-one-group": Form(GPTQ | {"group_size": -1}, gptq(4, -1)),
    "gptq-2-bits": Form(GPTQ | {"bits": 2}, gptq(2, 64)),
    "gptq-8-bits": Form(GPTQ | {"bits": 8}, gptq(8, 64)),
    "gptq-act-order": Form(GPTQ | {"desc_act": True}, gptq(4, 64, ordered=True)),
    "gptq_v2": Form(GPTQ | V2, gptq(4, 64, version=2)),
    "gptq_v2-8-bits-act-order": Form(
        GPTQ | V2 | {"bits": 8, "desc_act": True}, gptq(8, 64, version=2, ordered=True)
    ),
    "gptq-float32-scales": Form(GPTQ, gptq(4, 64, dtype=np.float32)),
    "awq": Form(AWQ, awq(64)),
    "awq-one-group": Form(AWQ | {"group_size": -1}, awq(-1)),
    "awq-no-zero-points": Form(AWQ | {"zero_point": False}, awq(64, "absent")),
    "awq-middle-zero-points": Form(AWQ | {"zero_point": False}, awq(64, "middle")),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_is_read_as_what_a_second_formula_makes_of_it(
    tmp_path: Path, form: Form
) -> None:
    meant = write_repository(tmp_path / "source", form)
    source = open_huggingface(tmp_path / "source")
    assert set(source.tensors) == set(meant)
    for name, expected in meant.items():
        rows = len(expected)
        pieces = [source.read(name, first, min(first + 27, rows)) for first in range(0, rows, 27)]
        found = np.concatenate(pieces)
        assert found.dtype.name == expected.dtype.name == source.tensors[name].dtype
        assert found.tobytes() == expected.tobytes(), name


def test_every_8_bit_float_is_decoded_as_its_bits_say() -> None:
    every = np.arange(256, dtype=np.uint8)
    finite = every[(every & 127) != 127].view(FP8)
    values = fp8.scaled(finite[None], np.ones(1, np.float32), range(1), (1, 254))
    assert values.tobytes() == decode_fp8(finite).tobytes()


def test_blocks_at_the_borders_are_partial() -> None:
    values = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], FP8)
    scale = np.array([[10, 100], [1000, 10000]], np.float32)
    expected = [[10, 20, 300], [40, 50, 600], [7000, 8000, 90000]]
    assert fp8.scaled(values, scale, range(3), (2, 2)).tolist() == expected
    assert fp8.scaled(values[2:], scale, range(2, 3), (2, 2)).tolist() == expected[2:]


def test_a_word_holds_its_first_number_in_its_lowest_bits() -> None:
    words = np.array([[0x76543210, -1]], np.int32)
    assert unpack(words, 4, 1).tolist() == [[*range(8), *[15] * 8]]
    assert unpack(words.T, 8, 0).T.tolist() == [[0x10, 0x32, 0x54, 0x76, *[255] * 4]]
    assert unpack_span(words, 4, 1, range(6, 9)).tolist() == [[6, 7, 15]]


def test_awq_interleaves_the_outputs_of_a_word() -> None:
    words = np.array([[0x76543210]], np.int32)
    assert awq_format.unpack_outputs(words, range(8)).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


def test_a_scale_is_spread_over_its_block() -> None:
    grid = np.array([[1, 2], [3, 4]])
    assert spread(grid, range(1, 4), 3, (2, 2)).tolist() == [[1, 1, 2], [3, 3, 4], [3, 3, 4]]


def test_gptq_subtracts_the_zero_point_of_the_input_s_group() -> None:
    weights = np.array([[9], [9], [3]], np.float32)
    zeros, scales = np.array([[8], [1]], np.float32), np.array([[0.5], [2]], np.float16)
    found = dequantize(weights, zeros, scales, np.array([0, 1, 0]))
    assert found.tolist() == [[0.5, 16, -2.5]]


def test_gptq_stores_zero_points_less_one_in_its_first_version_alone() -> None:
    stored = np.array([[7.0]], np.float32)
    assert gptq_format.zero_points(stored, 4, True, "x") == 8
    assert gptq_format.zero_points(stored, 4, False, "x") == 7


def test_awq_subtracts_the_zero_point_of_the_input_s_group() -> None:
    weights = np.array([[9], [9]], np.float32)
    zeros, scales = np.array([[8], [1]], np.float32), np.array([[0.5], [2]], np.float16)
    assert dequantize(weights, zeros, scales, np.arange(2)).tolist() == [[0.5, 16]]


def test_nf4_multiplies_the_scale_of_a_block_with_the_value_of_a_code() -> None:
    codes = bitsandbytes.CODES["nf4"]
    found = bitsandbytes.dequantize_4bit(
        np.array([0xF0, 0x7F], np.uint8), codes, np.array([3, 5], np.float32), range(4), 2
    )
    assert found.tolist() == [3, -3, 0, 5]
    odd = bitsandbytes.dequantize_4bit(
        np.array([0xF0, 0x7F], np.uint8), codes, np.array([3, 5], np.float32), range(1, 4), 2
    )
    assert odd.tolist() == [-3, 0, 5]


def test_fp4_has_the_values_of_a_float_of_four_bits_over_12() -> None:
    assert (bitsandbytes.CODES["fp4"][:8] * 12).tolist() == [0, 0.0625, 8, 12, 4, 6, 2, 3]
    assert (bitsandbytes.CODES["fp4"][9:] == -bitsandbytes.CODES["fp4"][1:8]).all()


def test_scales_that_are_quantised_themselves_have_an_offset() -> None:
    codes = np.array([0, 0.5], np.float32)
    found = bitsandbytes.dequantize_scales(
        np.array([1, 0], np.uint8), codes, np.array([4, 4], np.float32), np.float32(10)
    )
    assert found.tolist() == [12, 10]


def test_127_of_8_bits_is_the_largest_number_of_a_row() -> None:
    found = bitsandbytes.dequantize_int8(np.array([[127, -127]], np.int8), np.array([2.5]))
    np.testing.assert_allclose(found, [[2.5, -2.5]], rtol=1e-6)


def test_compressed_tensors_subtract_the_zero_point_before_they_scale() -> None:
    values, zero, scale = (np.array([[n]], np.float32) for n in (9, 8, 0.5))
    assert packed.dequantize(values, zero, scale, "bfloat16").tolist() == [[0.5]]
    assert packed.dequantize(values, None, scale, "float16").tolist() == [[4.5]]


PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 64,
                "actorder": "group",
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": ["lm_head"],
}


def ordered_groups(weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns in an order of their own: sorted by group, scaled, and put back."""
    rng = np.random.default_rng(weight.size)
    rows, columns = weight.shape
    numbers = rng.integers(0, 16, weight.shape)
    scale = rng.uniform(0.01, 0.02, (rows, columns // 64)).astype(BF16)
    index = rng.permutation(np.arange(columns) // 64).astype(np.int32)
    order = np.argsort(index, kind="stable")
    by_group = (numbers[:, order] - 8).reshape(rows, -1, 64) * scale.astype(np.float64)[..., None]
    meant = np.zeros(weight.shape, BF16)
    meant[:, order] = by_group.reshape(rows, columns).astype(BF16)
    return {
        "weight_packed": pack(numbers, 4),
        "weight_scale": scale,
        "weight_shape": np.array(weight.shape, np.int64),
        "weight_g_idx": index,
    }, meant


def unordered_groups(weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same with the plain order, for which -1 stands."""
    stored, _ = ordered_groups(weight)
    scale = np.repeat(stored["weight_scale"].astype(np.float64), 64, axis=1)
    numbers = unpack(stored["weight_packed"], 4, 1)
    stored["weight_g_idx"] = np.full(weight.shape[1], -1, np.int32)
    return stored, ((numbers - 8) * scale).astype(BF16)


@pytest.mark.parametrize("quantise", [ordered_groups, unordered_groups])
def test_act_order_of_compressed_tensors_is_undone(tmp_path: Path, quantise: Any) -> None:
    meant = write_repository(tmp_path / "source", Form(PACKED, quantise))
    source = open_huggingface(tmp_path / "source")
    for name, expected in meant.items():
        assert source.read(name, 0, len(expected)).tobytes() == expected.tobytes(), name


def test_every_group_of_modules_has_its_own_scheme(tmp_path: Path) -> None:
    """v_proj in 8 bits, named by a pattern; the others, named by their class, in 4."""
    config = json.loads(json.dumps(PACKED))
    four = config["config_groups"]["group_0"]
    eight = json.loads(json.dumps(four)) | {"targets": ["re:.*v_proj$"]}
    eight["weights"] |= {"num_bits": 8, "group_size": None, "strategy": "channel"}
    config["config_groups"] = {"group_0": eight, "group_1": four}
    meant = write_repository(tmp_path / "source", Form(PACKED, ordered_groups))
    module = "model.layers.0.self_attn.v_proj"
    rng = np.random.default_rng(0)
    numbers, scale = rng.integers(0, 256, (64, 256)), rng.uniform(1, 2, (64, 1)).astype(BF16)
    meant[f"{module}.weight"] = ((numbers - 128) * scale.astype(np.float64)).astype(BF16)
    stored = {"weight_packed": pack(numbers, 8), "weight_scale": scale}
    stored |= {"weight_shape": np.array([64, 256])}
    replaced = {f"{module}.{name}": value for name, value in stored.items()}
    rewrite(tmp_path / "source", config, replaced, {f"{module}.weight_g_idx"})
    source = open_huggingface(tmp_path / "source")
    for name, expected in meant.items():
        assert source.read(name, 0, len(expected)).tobytes() == expected.tobytes(), name


def rewrite(
    folder: Path, config: dict, replaced: dict[str, np.ndarray], removed: set[str] = frozenset()
) -> None:
    """The repository with another quantization_config and some other tensors."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    names = [name for name in header if name not in removed]
    mapping = Mapping(dict.fromkeys(names, path))
    tensors = {name: np.array(mapping.part(name)) for name in names}
    path.unlink()
    write_safetensors(path, tensors | replaced)
    values = CONFIG | ({"quantization_config": config} if config else {})
    (folder / "config.json").write_text(json.dumps(values))


def converted(tmp_path: Path, form: str) -> list[Model]:
    """The converted repository, and that of the plain weights which its matrices mean."""
    meant = write_repository(tmp_path / "source", FORMS[form])
    write_folder(tmp_path / "plain", CONFIG, {n: a.astype(BF16) for n, a in meant.items()})
    for name in ("source", "plain"):
        to_jax_module.to_jax(tmp_path / name, tmp_path / f"{name}-ours")
    return [load(tmp_path / f"{name}-ours") for name in ("source", "plain")]


@pytest.mark.parametrize("form", ["fbgemm_fp8", "gptq_v2", "awq"])
def test_the_converted_model_is_that_of_the_dequantised_weights(tmp_path: Path, form: str) -> None:
    ours, plain = converted(tmp_path, form)
    assert bits(ours.params) == bits(plain.params)


@pytest.mark.parametrize("form", ["fp8-blocks", "gptq-act-order"])
def test_logits_are_those_of_the_model_of_the_dequantised_weights(
    tmp_path: Path, form: str
) -> None:
    tokens = np.random.default_rng(0).integers(0, 101, (1, 12))
    logits = [
        np.asarray(forward(model.params, tokens, model.config)[0])
        for model in converted(tmp_path, form)
    ]
    assert logits[0].tobytes() == logits[1].tobytes()
    assert np.isfinite(logits[0].astype(np.float32)).all()


def test_without_a_dtype_the_model_is_bfloat16_and_a_note_says_so(tmp_path: Path) -> None:
    write_repository(tmp_path / "source", FORMS["gptq"])
    to_jax_module.to_jax(tmp_path / "source", tmp_path / "ours")
    manifest = read_manifest(tmp_path / "ours")
    assert {tensor["dtype"] for tensor in manifest["tensors"].values()} == {"bfloat16"}
    note = next(text for text in manifest["decisions"] if text.startswith("note: "))
    assert "7 matrices of gptq (4 bits, groups of 64)" in note
    assert "stored as bfloat16; --dtype float16 keeps all digits" in note


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_keeps_all_digits(tmp_path: Path, dtype: str) -> None:
    meant = write_repository(tmp_path / "source", FORMS["gptq"])
    to_jax_module.to_jax(tmp_path / "source", tmp_path / "ours", dtype=dtype)
    gate = np.asarray(load(tmp_path / "ours").params.layers[0].w_gate)
    expected = meant["model.layers.0.mlp.gate_proj.weight"].astype(dtype)
    assert gate.tobytes() == expected.tobytes()


def test_inspect_reads_no_weights_and_says_what_it_is(tmp_path: Path) -> None:
    write_repository(tmp_path / "source", FORMS["awq"])
    text = inspect(tmp_path / "source")
    assert "7 matrices of awq (4 bits, groups of 64) are dequantised" in text
    assert "cannot be converted" not in text


@pytest.mark.parametrize("form", ["fbgemm_fp8", "fp8-blocks", "gptq-act-order", "awq"])
def test_only_a_block_of_a_matrix_is_in_memory(tmp_path: Path, form: str) -> None:
    """Of a matrix of more than a million numbers 64 rows are read, which are 16,384."""
    folder = tmp_path / "source"
    write_repository(folder, FORMS[form])
    module, columns = "model.layers.0.mlp.gate_proj", 256
    repeats = 16
    weight = np.random.default_rng(0).standard_normal((320 * repeats, columns)).astype(np.float32)
    stored, meant = FORMS[form].quantise(weight)
    large = {f"{module}.{name}": value for name, value in stored.items()}
    rewrite(folder, FORMS[form].config, large)
    source = open_huggingface(folder)
    source.read(f"{module}.weight", 0, 1)
    tracemalloc.start()
    for start in range(0, len(weight), 1024):
        rows = source.read(f"{module}.weight", start, start + 64)
        assert rows.tobytes() == meant[start : start + 64].tobytes()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000
    assert meant.size == 16 * 320 * 256


def opened(tmp_path: Path, config: dict | None, form: str, **tensors: np.ndarray | None) -> Any:
    """The source of a form's repository with another config, and other tensors of q_proj."""
    folder = tmp_path / "source"
    write_repository(folder, FORMS[form])
    module = "model.layers.0.self_attn.q_proj"
    removed = {f"{module}.{name}" for name, value in tensors.items() if value is None}
    replaced = {f"{module}.{n}": value for n, value in tensors.items() if value is not None}
    rewrite(folder, FORMS[form].config if config is None else config, replaced, removed)
    return open_huggingface(folder)


REFUSED = {
    "another method": ({"quant_method": "aqlm", "bits": 2}, "quant_method 'aqlm' with 2 bits"),
    "no method": ({"bits": 4}, "quant_method None with 4 bits"),
    "3 bits": (GPTQ | {"bits": 3}, "gptq with 3 bits is not supported, only 2 and 4 and 8"),
    "an unknown key": (GPTQ | {"spin": 1}, "quantization_config has unknown keys spin"),
    "marlin": (GPTQ | {"is_marlin_format": True}, "checkpoint_format 'marlin'"),
    "settings for modules": (GPTQ | {"dynamic": {"q_proj": {"bits": 8}}}, "for single modules"),
    "a group of zero": (GPTQ | {"group_size": 0}, "group_size 0 is no size"),
    "bits that are text": (GPTQ | {"bits": "4"}, "bits '4' is no whole number"),
    "the other layout of awq": (AWQ | {"version": "gemv"}, "awq in the layout 'gemv'"),
    "awq of 8 bits": (AWQ | {"bits": 8}, "awq with 8 bits"),
    "an ignored layer": (
        GPTQ | {"modules_to_not_convert": ["model.layers.0.mlp.up_proj"]},
        "up_proj.weight is stored quantised, but quantization_config says",
    ),
    "a transform": (PACKED | {"transform_config": {"u": 1}}, "transform_config"),
    "sparsity": (PACKED | {"sparsity_config": {"format": "sparse-bitmask"}}, "'sparse-bitmask'"),
    "nvfp4": (PACKED | {"format": "nvfp4-pack-quantized"}, "'nvfp4-pack-quantized' with 4 bits"),
    "no groups": (PACKED | {"config_groups": {}}, "config_groups is missing or empty"),
    "e5m2": (BLOCKS | {"fmt": "e5m2"}, "fp8 with fmt 'e5m2'"),
    "a block of one size": (BLOCKS | {"weight_block_size": [128]}, "is no pair of sizes"),
    "another method's tensors": (BLOCKS, "is int32 and belongs to no weight|no weight is stored"),
    "no object": ([4], "quantization_config .* is no object"),
}


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, config: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path, config, "gptq")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "source") in str(error.value)


ODD = (None, True, 0, -1, 1.5, 10**30, float("nan"), "", " ", "x", [], [1], [[]], {}, {"x": {}})


def with_odd_values(config: Any) -> Iterator[Any]:
    """The settings with one value replaced, at every depth."""
    yield from ODD
    inner = config.items() if isinstance(config, dict) else enumerate(config)
    if not isinstance(config, dict | list):
        return
    for key, value in inner:
        for odd in with_odd_values(value) if isinstance(value, dict | list) else ODD:
            changed = copy.copy(config)
            changed[key] = odd
            yield changed


@pytest.mark.parametrize("form", ["fbgemm_fp8", "fp8-blocks", "gptq_v2", "awq", "packed"])
def test_settings_of_any_type_are_read_or_refused_in_one_line(tmp_path: Path, form: str) -> None:
    config, folder = {**FORMS, "packed": Form(PACKED, ordered_groups)}[form].config, tmp_path / "in"
    write_repository(folder, {**FORMS, "packed": Form(PACKED, ordered_groups)}[form])
    count = 0
    for odd in with_odd_values(config):
        (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": odd}))
        count += 1
        message = ""
        try:
            open_source(folder).read("model.layers.0.self_attn.q_proj.weight", 0, 1)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message, odd
    assert count > 40


WORDS = np.zeros((4, 32), np.int32)
DAMAGED: dict[str, tuple[str, dict, str]] = {
    "no scales": ("gptq", {"scales": None}, "q_proj.scales is missing"),
    "scales of another shape": (
        "gptq",
        {"scales": np.ones((4, 8), np.float16)},
        r"q_proj.scales has shape \[4, 8\], not \[4, 256\]",
    ),
    "integers for scales": ("gptq", {"scales": WORDS}, "q_proj.scales is int32, not float32"),
    "an empty tensor": ("gptq", {"qweight": np.zeros((0, 256), np.int32)}, "which is empty"),
    "no scale of a row": ("fbgemm_fp8", {"weight_scale": None}, "weight_scale is missing"),
    "no scale of a block": ("fp8-blocks", {"weight_scale_inv": None}, "scale_inv is missing"),
    "a weight of integers": (
        "fp8-blocks",
        {"weight": np.zeros((256, 256), np.int8)},
        "q_proj.weight is int8 and belongs to no weight",
    ),
    "scales without a weight": ("awq", {"qweight": None}, "qzeros is int32 and belongs to no"),
    "a weight twice": (
        "gptq",
        {"weight": np.zeros((256, 256), np.float16)},
        "q_proj.weight is stored twice, plain and quantised",
    ),
    "a bias that is something": (
        "gptq-biases",
        {"bias": np.ones(256, np.float16)},
        "",
    ),
}


@pytest.mark.parametrize(("form", "tensors", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_tensors_that_do_not_fit_together_are_named(
    tmp_path: Path, form: str, tensors: dict, message: str
) -> None:
    if message:
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, None, form, **tensors)
        return
    opened(tmp_path, None, form, **tensors)
    with pytest.raises(ValueError, match=r"q_proj.bias has no place in the model"):
        to_jax_module.to_jax(tmp_path / "source", tmp_path / "ours")


@pytest.mark.parametrize(
    ("form", "tensors", "message"),
    [
        ("gptq", {"qzeros": np.full((4, 32), -1, np.int32)}, "qzeros holds the zero point 15"),
        ("gptq", {"g_idx": np.full(256, 4, np.int32)}, "not among the 4 of the scales"),
        ("gptq", {"g_idx": np.full(256, -1, np.int32)}, "not among the 4 of the scales"),
        ("awq-no-zero-points", {"qzeros": WORDS}, "says zero_point false"),
        ("gptq", {"scales": np.full((4, 256), np.nan, np.float16)}, "wq holds NaN"),
    ],
)
def test_contents_that_mean_nothing_are_refused_and_nothing_is_written(
    tmp_path: Path, form: str, tensors: dict, message: str
) -> None:
    opened(tmp_path, None, form, **tensors)
    with pytest.raises(ValueError, match=message):
        to_jax_module.to_jax(tmp_path / "source", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_g_idx_of_zeros_means_the_plain_order(tmp_path: Path) -> None:
    source = opened(tmp_path, None, "gptq", g_idx=np.zeros(256, np.int32))
    expected = write_repository(tmp_path / "plain", FORMS["gptq"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert source.read(name, 0, 256).tobytes() == expected[name].tobytes()


def test_quantised_tensors_without_a_config_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"I32; only .* config.json must say how"):
        opened(tmp_path, {}, "gptq")


def test_a_config_that_is_null_changes_nothing(tmp_path: Path) -> None:
    from checkpoints import hf_tensors
    from quantized_repositories import SMALL
    from random_models import sharp_params

    values = CONFIG | {"quantization_config": None}
    write_folder(tmp_path / "plain", values, hf_tensors(sharp_params(0, SMALL)))
    source = open_huggingface(tmp_path / "plain")
    assert not [text for text in source.decisions if "quantised" in text]
    assert {info.kept for info in source.tensors.values()} == {None}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("re:(?:.*.*)*!", "takes more than 1 s to match"),
        ("re:" + ".?" * 40 + ".*!", "takes more than 1 s to match"),
        ("re:" + "(?:.|..|)" * 28 + "!", "takes more than 1 s to match"),
        ("re:(", "cannot be used: missing"),
    ],
)
def test_a_pattern_that_takes_for_ever_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    monkeypatch.setattr("convert.formats.patterns._SECONDS", 1)
    config = json.loads(json.dumps(PACKED))
    other = json.loads(json.dumps(config["config_groups"]["group_0"]))
    other |= {"targets": [target]}
    other["weights"]["num_bits"] = 8
    config["config_groups"] = {"a": other, **config["config_groups"]}
    write_repository(tmp_path / "source", Form(config, ordered_groups))
    with pytest.raises(ValueError, match=message):
        open_huggingface(tmp_path / "source")


def test_compare_refuses_a_quantised_source_in_one_line(tmp_path: Path) -> None:
    write_repository(tmp_path / "source", FORMS["gptq"])
    to_jax_module.to_jax(tmp_path / "source", tmp_path / "out")
    with pytest.raises(ValueError, match=r"is quantised, .* save it dequantised"):
        compare(tmp_path / "source", tmp_path / "out")


STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]}
NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"shape": [4]}, "is not that of a matrix"),
        ({"shape": [4, 10**30]}, "does not hold"),
        ({"blocksize": 63}, "nothing that bitsandbytes writes"),
        ({"dtype": "int8"}, "nothing that bitsandbytes writes"),
        ({"quant_type": "fp4"}, "nothing that bitsandbytes writes"),
        ({"nested_offset": 1.0}, "nothing that bitsandbytes writes"),
        (NESTED | {"nested_blocksize": 10**30}, "nothing that bitsandbytes writes"),
        ({"more": 1}, "unknown keys more"),
        (NESTED, "absmax is float32, not uint8"),
    ],
)
def test_the_state_of_a_4_bit_weight_is_not_believed(state: dict, message: str) -> None:
    name = "layer.weight"
    parts = {
        name: np.zeros((128, 1), np.uint8),
        f"{name}.absmax": np.ones(4, np.float32),
        f"{name}.quant_map": bitsandbytes.CODES["nf4"],
    }
    text = np.frombuffer(json.dumps(STATE | state).encode(), np.uint8)
    parts[f"{name}.quant_state.bitsandbytes__nf4"] = text
    tensors = {key: TensorInfo(value.shape, value.dtype.name) for key, value in parts.items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ValueError, match=message):
        bitsandbytes.find(config, tensors, parts.__getitem__)
