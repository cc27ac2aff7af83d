"""Int8 weights and an int8 cache: the rounding, the products, the folders, and what the default model loses."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import META, PARAMS, V4, bits, hf_tensors, write_folder, write_gguf, write_meta
from commands import run
from deferred import later
from divergence import divergence, jitted, texts
from draws import normal
from random_models import TINY, replace, sharp_params
from shapes import DEFAULT_SHAPE, SPECS

from convert.__main__ import main
from convert.fetch.models import fetch
from convert.inspection import inspect
from convert.to_jax import to_jax
from jax_llama3 import (
    Model,
    Params,
    Quantized,
    abstract_params,
    decode,
    forward,
    generate,
    init_cache,
    load,
    prefill,
    quantize,
    save,
)
from jax_llama3.checkpoint.manifest import read_manifest
from jax_llama3.checkpoint.verification import verify
from jax_llama3.cli.info import describe
from jax_llama3.decoding.programs import choose_ops, decode_compiled
from jax_llama3.decoding.scoring import score_tokens
from jax_llama3.kernels.cpu.products import sums_by_block
from jax_llama3.model.linear import dot, linear
from jax_llama3.model.ops import Ops
from jax_llama3.model.params import named_leaves
from jax_llama3.model.quantization import dequantize, quantize_array
from jax_llama3.model.taps import no_tap

TIED = replace(TINY, tie_embeddings=True)
INT8 = quantize(PARAMS)
# A number of float32 noise may round to the next int8 value, which moves a logit more than the noise.
CACHE_NOISE = 1e-2
TOKENS = np.random.default_rng(3).integers(0, TINY.vocab_size, (3, 24), np.int32)


def dequantized(params: Params) -> Params:
    """The same numbers in float32 and in the plain tree."""
    return jax.tree.map(
        lambda leaf: dequantize(leaf, jnp.float32),
        params,
        is_leaf=lambda leaf: isinstance(leaf, Quantized),
    )


def test_three_numbers() -> None:
    values, scale = quantize_array(jnp.array([[0.5, -1.27, 0.254], [0, 0, 0]]), 1)
    assert values.tolist() == [[50, -127, 25], [0, 0, 0]]
    np.testing.assert_allclose(scale, [0.01, 0], rtol=1e-6)
    restored = dequantize(Quantized(values, scale), jnp.float32)
    np.testing.assert_allclose(restored, [[0.5, -1.27, 0.25], [0, 0, 0]], rtol=1e-6)


def test_ties_go_to_the_even_value() -> None:
    values, _ = quantize_array(jnp.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]]), 1)
    assert values.tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_no_weight_moves_by_more_than_half_a_step(config: object, dtype: object) -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), sharp_params(5, config))
    small = quantize(params)
    for name, leaf in named_leaves(params):
        layer = small if "layers" not in name else small.layers[int(name.split(".")[1])]
        found = getattr(layer, name.rpartition(".")[2])
        if leaf.ndim == 1:
            assert found is leaf, name
            continue
        channels = leaf.shape[:1] if name.endswith("wo") else leaf.shape[:-1]
        assert (found.values.dtype, found.values.shape) == (jnp.int8, leaf.shape)
        assert (found.scale.dtype, found.scale.shape) == (jnp.float32, channels)
        wide = np.asarray(leaf, np.float64).reshape(*channels, -1)
        values = np.asarray(found.values, np.float64).reshape(*channels, -1)
        scale = np.asarray(found.scale, np.float64)[..., None]
        assert np.abs(values).max(-1).min() == 127, "every channel uses the whole range"
        assert np.all(np.abs(values * scale - wide) <= scale / 2 * (1 + 1e-5)), name
    assert small.output is None if config is TIED else isinstance(small.output, Quantized)


def test_next_to_nothing_is_zero_and_nan_stays() -> None:
    rows = np.array([[0, 0], [1e-38, 0], [1e-40, -1e-42], [np.nan, 1], [3e38, -3e38]], np.float32)
    restored = dequantize(quantize_array(jnp.asarray(rows), 1), jnp.float32)
    assert np.all(np.asarray(restored)[:3] == 0)
    assert np.isnan(restored[3]).all()
    np.testing.assert_allclose(restored[4], rows[4], rtol=1e-6)


def test_numpy_jax_and_its_compiler_agree_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 577)) * np.exp(rng.uniform(-9, 3, (500, 1)))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        narrow = rows.astype(dtype)
        expected = quantize_array(narrow, 1, np)
        assert isinstance(expected.values, np.ndarray)
        compiled = jax.jit(quantize_array, static_argnums=1)
        for found in (quantize_array(jnp.asarray(narrow), 1), compiled(jnp.asarray(narrow), 1)):
            assert bits(found) == bits(expected)


def test_quantize_works_on_shapes_and_under_jit_and_only_once() -> None:
    assert bits(jax.jit(quantize)(PARAMS)) == bits(INT8)
    abstract = jax.eval_shape(quantize, abstract_params(TINY, jnp.bfloat16))
    assert jax.tree.structure(abstract) == jax.tree.structure(INT8)
    assert jax.tree.map(np.shape, abstract) == jax.tree.map(np.shape, INT8)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(abstract)} == {
        "int8",
        "float32",
        "bfloat16",
    }
    with pytest.raises(ValueError, match="quantised already"):
        quantize(INT8)


@pytest.mark.parametrize(("spec", "shapes"), SPECS.items(), ids=SPECS.keys())
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("block_bytes", [1, 3 * 4 * 8, 2 << 20])
def test_the_product_equals_that_of_the_dequantised_weight(
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    shapes: tuple,
    dtype: object,
    block_bytes: int,
    form: Ops,
) -> None:
    monkeypatch.setattr("jax_llama3.kernels.cpu.products._BLOCK_BYTES", block_bytes)
    x, weight = (normal(i, shape, dtype) for i, shape in enumerate(shapes))
    contracted = 2 if spec == "BTNH,DNH->BTD" else 1
    small = quantize_array(weight, contracted)
    exact = np.asarray(dequantize(small, jnp.float32))
    expected = np.einsum(spec, np.asarray(x, np.float32), exact)
    wide = linear(spec, x, small, jnp.float32, products=form.products)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, expected, rtol=1e-5, atol=1e-5)
    same = linear(spec, x, small, products=form.products)
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, wide.astype(dtype))


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_blocks_and_the_plain_form_give_the_same_sums(rows: int) -> None:
    values = np.random.default_rng(1).integers(-127, 128, (3001, 512), np.int8)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = normal(0, (rows, 512), dtype)
        plain = dot(x, jnp.asarray(values).astype(dtype))
        blocks = jax.jit(sums_by_block)(x, jnp.asarray(values))
        np.testing.assert_allclose(plain, blocks, rtol=1e-5, atol=2e-2)


def test_the_product_has_a_gradient_and_a_batch_axis(form: Ops) -> None:
    product = partial(linear, "BTD,FD->BTF", products=form.products)
    weight = quantize_array(normal(1, (7, 8)), 1)
    x = normal(0, (3, 1, 1, 8))
    outer = jax.vmap(lambda x: product(x, weight))(x)
    np.testing.assert_allclose(outer, product(x[:, 0], weight)[:, None], rtol=1e-5)
    gradient = jax.grad(lambda x: product(x, weight).sum())(x[0])
    expected = np.asarray(dequantize(weight, jnp.float32)).sum(0)
    np.testing.assert_allclose(gradient[0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [later(TINY, name="untied"), pytest.param(TIED, id="tied")])
def test_a_quantised_model_is_the_model_of_the_dequantised_weights(
    config: object, ops: Ops | None
) -> None:
    small = quantize(sharp_params(5, config))
    logits, _ = forward(small, TOKENS, config, ops=ops)
    expected, _ = forward(dequantized(small), TOKENS, config, ops=ops)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def decoded(
    params: Params, tokens: np.ndarray, dtype: object, capacity: int = 40, *, ops: Ops | None
) -> np.ndarray:
    """Logits from the fifth token on, of a prefill of five and a decode of each other one."""
    cache = init_cache(TINY, len(tokens), capacity, dtype)
    lengths = np.full(len(tokens), 5, np.int32)
    logits, cache = prefill(params, tokens[:, :5], lengths, cache, TINY, ops=ops)
    steps = [logits]
    for index in range(5, tokens.shape[1]):
        logits, cache = decode(params, tokens[:, index], cache, TINY, ops=ops)
        steps.append(logits)
    return np.stack(steps, axis=1)


def test_prefill_and_decode_equal_one_forward(ops: Ops | None) -> None:
    whole, _ = forward(INT8, TOKENS, TINY, ops=ops)
    np.testing.assert_allclose(
        decoded(INT8, TOKENS, jnp.float32, ops=ops), whole[:, 4:], rtol=0, atol=1e-4
    )


def test_activations_have_the_dtype_of_the_norms(ops: Ops | None) -> None:
    narrow = quantize(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {
        jnp.dtype(name) for name in ("int8", "float32", "bfloat16")
    }
    seen = {}

    def tap(name: str, array: jax.Array) -> jax.Array:
        seen[name] = array.dtype
        return array

    logits, _ = forward(narrow, TOKENS, TINY, tap=tap, ops=ops)
    assert logits.dtype == jnp.float32
    wide = ("scores", "pattern", "logits")
    assert {dtype for name, dtype in seen.items() if not name.endswith(wide)} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_the_cache_holds_what_the_taps_saw_rounded_per_token_and_head(ops: Ops | None) -> None:
    seen = {}

    def tap(name: str, array: jax.Array) -> jax.Array:
        seen[name] = array
        return array

    cache = init_cache(TINY, 3, 32, jnp.int8)
    assert cache.k[0].values.shape == (3, 32, 2, 16)
    assert cache.k[0].scale.shape == (3, 32, 2)
    _, cache = forward(PARAMS, TOKENS, TINY, cache, tap=tap, ops=ops)
    for layer in range(TINY.n_layers):
        for slots, name in ((cache.k, "k"), (cache.v, "v")):
            expected = quantize_array(seen[f"layers.{layer}.attn.{name}"], 1)
            for found, value in zip(slots[layer], expected, strict=True):
                np.testing.assert_array_equal(found[:, :24], value)
                assert not np.asarray(found[:, 24:]).any()


def test_an_int8_cache_changes_little(
    record_property: Callable[[str, object], None], ops: Ops | None
) -> None:
    exact = decoded(PARAMS, TOKENS, jnp.float32, ops=ops)
    other = decoded(PARAMS, TOKENS, jnp.int8, ops=ops)
    error = float(np.abs(other - exact).max())
    record_property("logits of an int8 cache against a float32 one, tiny model", float(error))
    assert 1e-3 < error < 0.15


@pytest.mark.parametrize("params", [PARAMS, INT8], ids=["float32", "int8"])
def test_an_int8_cache_gives_every_row_what_it_has_alone_at_any_capacity(
    params: Params, ops: Ops | None
) -> None:
    together = decoded(params, TOKENS, jnp.int8, ops=ops)
    for row in range(len(TOKENS)):
        for capacity in (24, 100):
            alone = decoded(params, TOKENS[row : row + 1], jnp.int8, capacity, ops=ops)
            np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=CACHE_NOISE)


def test_more_rows_than_are_written_one_by_one(ops: Ops | None) -> None:
    tokens = np.tile(TOKENS, (3, 1))
    together = decoded(PARAMS, tokens, jnp.int8, ops=ops)
    np.testing.assert_allclose(together[:3], together[6:], rtol=0, atol=CACHE_NOISE)
    np.testing.assert_allclose(
        together[:3], decoded(PARAMS, TOKENS, jnp.int8, ops=ops), rtol=0, atol=CACHE_NOISE
    )


def test_generation_and_scores_take_a_quantised_model(ops: Ops | None) -> None:
    prompt = TOKENS[0].tolist()
    small, plain = (Model(TINY, p, None) for p in (INT8, dequantized(INT8)))
    found = generate(small, prompt, max_new_tokens=8, stop=())
    assert found.tokens == generate(plain, prompt, max_new_tokens=8, stop=()).tokens
    scores = [score_tokens(model.params, prompt, TINY, ops=ops) for model in (small, plain)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-4)


@pytest.mark.xla_pin
@pytest.mark.parametrize(("dtype", "n_layers"), [(jnp.float32, 4), later(jnp.bfloat16, 30)])
def test_a_quantised_decode_step_makes_no_wide_copy_of_its_weights(
    dtype: object, n_layers: int
) -> None:
    config = replace(DEFAULT_SHAPE, n_layers=n_layers)
    params = jax.eval_shape(quantize, abstract_params(config, dtype))
    cache = jax.eval_shape(lambda: init_cache(config, 1, 512, jnp.int8))
    tokens = jax.ShapeDtypeStruct((1,), jnp.int32)
    ops = choose_ops(params, 1, 1)
    step = decode_compiled.lower(params, tokens, cache, config, no_tap, ops).compile()
    # Widened at once, the matrices of attention are 3.5 MB a layer, the embedding 113 MB.
    assert step.memory_analysis().temp_size_in_bytes < 5e6


SOURCES = {
    "huggingface": lambda path: write_folder(path / "in", V4, hf_tensors(PARAMS)),
    "gguf": lambda path: write_gguf(
        path / "in.gguf", replace(TINY, rope_scaling=None), sharp_params(11, TINY)
    ),
    "meta": lambda path: write_meta(path / "in", sharp_params(1, META), shards=2),
}


KINDS = ["huggingface", "gguf", pytest.param("meta", marks=pytest.mark.reference)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_bytes", [1 << 10, 4 << 20])
def test_a_quantised_folder_is_quantize_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, block_bytes: int
) -> None:
    monkeypatch.setattr("convert.table.BLOCK_BYTES", block_bytes)
    source = SOURCES[kind](tmp_path)
    to_jax(source, tmp_path / "plain")
    assert run(main, ["to-jax", str(source), str(tmp_path / "int8"), "--quantize", "int8"]) == 0
    model, plain = load(tmp_path / "int8"), load(tmp_path / "plain")
    assert model.config == plain.config
    expected = quantize(plain.params)
    assert jax.tree.structure(model.params) == jax.tree.structure(expected)
    assert bits(model.params) == bits(expected)
    manifest = verify(tmp_path / "int8")
    assert "quantize int8" in manifest["decisions"]
    assert manifest["tensors"]["layers.0.wo.values"]["dtype"] == "int8"
    assert manifest["tensors"]["layers.0.wo.scale"]["shape"] == [model.config.dim]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    to_jax(SOURCES["huggingface"](tmp_path), tmp_path / "int8", quantize="int8")
    return tmp_path / "int8"


def test_saved_and_loaded_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    save(tmp_path / "again", model)
    verify(tmp_path / "again")
    assert bits(load(tmp_path / "again").params) == bits(model.params)
    mixed = model.params._replace(embedding=PARAMS.embedding)
    with pytest.raises(ValueError, match="shapes"):
        save(tmp_path / "mixed", model._replace(params=mixed))
    wide = model.params.embedding._replace(values=model.params.embedding.values.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"embedding\.values: dtype int32"):
        save(tmp_path / "wide", model._replace(params=model.params._replace(embedding=wide)))


def test_dtype_is_that_of_the_norms(folder: Path, tmp_path: Path) -> None:
    narrow = load(folder, dtype="bfloat16").params
    plain = load(folder).params
    assert bits(narrow.layers[0].wq) == bits(plain.layers[0].wq)
    assert bits(narrow.norm) == bits(plain.norm.astype(jnp.bfloat16))
    to_jax(tmp_path / "in", tmp_path / "narrow", dtype="bfloat16", quantize="int8")
    assert bits(load(tmp_path / "narrow").params) == bits(narrow)


def test_every_changed_byte_is_noticed(folder: Path) -> None:
    (shard,) = folder.glob("weights-*")
    data = shard.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = json.loads(data[8:header])
    for name in ("embedding.values", "layers.1.w_down.scale"):
        place = header + places[name]["data_offsets"][0]
        shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            verify(folder)
        shard.write_bytes(data)
    verify(folder)


def test_info_and_inspect_show_it(folder: Path) -> None:
    assert "int8" in describe(folder, read_manifest(folder))
    lines = inspect(folder).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["layers.0.wq.values"][1] == "int8"
    assert rows["layers.0.wo.values"][-2:] == ["[48,", "96]"]
    assert rows["layers.0.wq.scale"][1] == "float32"


def test_it_goes_to_no_other_format(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = str(tmp_path / "in")
    for words in (
        ["to-hf", str(folder), str(tmp_path / "out")],
        ["to-meta", str(folder), str(tmp_path / "out")],
        ["compare", source, str(folder)],
    ):
        assert run(main, words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error:")
        assert "convert the source again without --quantize" in line
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_quantised_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tensors = hf_tensors(PARAMS)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] = np.inf
    source = write_folder(tmp_path / "in", V4, tensors)
    words = ["to-jax", str(source), str(tmp_path / "out"), "--quantize"]
    assert run(main, [*words, "int8"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: tensor layers.1.w_up holds NaN or infinity")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert run(main, [*words, "int4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "int4" in line
    with pytest.raises(ValueError, match="'int4' is not supported"):
        to_jax(source, tmp_path / "out", quantize="int4")


def with_norms(params: Params, dtype: object) -> Params:
    """A quantised model whose norms, and so its activations, have another dtype."""
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, Quantized) else leaf.astype(dtype),
        params,
        is_leaf=lambda leaf: isinstance(leaf, Quantized),
    )


@pytest.fixture(scope="module")
def batches(default_model: Model) -> list[np.ndarray]:
    """Four pieces of every text."""
    return [batch[:4] for batch in texts(default_model)]


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_stays_close(
    default_model: Model,
    batches: list[np.ndarray],
    record_property: Callable[[str, object], None],
    ops: Ops | None,
) -> None:
    small = quantize(default_model.params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(small))
    half = sum(leaf.size for leaf in jax.tree.leaves(default_model.params))
    record_property(
        "bytes of int8 weights over half of bfloat16's, default model", float(size / half)
    )
    assert 1 < size / half < 1.01
    exact = [jitted(default_model.params, b, default_model.config, ops=ops)[0] for b in batches]
    for dtype in (jnp.float32, jnp.bfloat16):
        params = with_norms(small, dtype)
        logits = [jitted(params, b, default_model.config, ops=ops)[0] for b in batches]
        pairs = zip(exact, logits, strict=True)
        mean = np.mean([divergence(np.asarray(a), np.asarray(b)) for a, b in pairs])
        record_property(
            f"mean KL of int8 weights to float32, in {jnp.dtype(dtype).name}", float(mean)
        )
        assert mean < 0.01


@pytest.mark.real
@pytest.mark.slow
def test_an_int8_cache_of_the_default_model_stays_close(
    default_model: Model,
    batches: list[np.ndarray],
    record_property: Callable[[str, object], None],
    ops: Ops | None,
) -> None:
    config, params = default_model.config, default_model.params
    found = []
    for batch in batches:
        cache = init_cache(config, len(batch), 64, jnp.int8)
        exact, _ = jitted(params, batch, config, ops=ops)
        logits, _ = jitted(params, batch, config, cache, ops=ops)
        found.append(divergence(np.asarray(exact), np.asarray(logits)))
    record_property("mean KL of an int8 cache to float32", float(np.mean(found)))
    assert np.mean(found) < 0.01


@pytest.mark.real
def test_fetch_keeps_no_other_model_than_the_one_asked_for(default_model: Model) -> None:
    with pytest.raises(FileExistsError, match="without int8; add --overwrite"):
        fetch("smollm2-135m-instruct", quantize="int8")
