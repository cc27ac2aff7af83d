"""A LoRA adapter merged into a model: what PEFT's own merge gives, or one line that says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from adapters import CONFIG, lora, write_adapter
from checkpoints import bits, hf_tensors
from random_models import TINY, replace, sharp_params
from tokenizer_files import generation, sentencepiece_like

from convert.__main__ import main
from convert.merge import merge
from convert.to_gguf import to_gguf
from convert.to_jax import to_jax
from jax_llama3 import Config, Model, forward, load, save
from jax_llama3.checkpoint.verification import verify
from jax_llama3.text.tokenizer import GENERATION, JSON, tokenizer_from_files

Q, V = (96, 48), (32, 48)
SHAPES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(2)
    for name, shape in (("q_proj", Q), ("v_proj", V))
}
EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"


def saved(folder: Path, config: Config = TINY, dtype: Any = np.float32) -> Path:
    params = sharp_params(5, config)
    tree = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype)), params)
    save(folder, Model(config, tree, None))
    return folder


def merged(tmp_path: Path, adapter: Path, **options: Any) -> dict[str, np.ndarray]:
    """The merged tensors under Hugging Face's names."""
    merge(tmp_path / "jax", adapter, tmp_path / "out", **options)
    verify(tmp_path / "out")
    return hf_tensors(load(tmp_path / "out").params)


def expected(
    base: dict[str, np.ndarray], tensors: dict[str, np.ndarray], scalings: dict[str, float]
) -> dict[str, np.ndarray]:
    """W + scaling B A in float64."""
    wide = {name: array.astype(np.float64) for name, array in base.items()}
    for module, scaling in scalings.items():
        a, b = (tensors[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        wide[f"{module}.weight"] += scaling * b @ a
    return wide


def assert_near(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        # A product of rank 4 and a sum, each rounded to float32; the numbers are below 8.
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6, err_msg=name)


# --- the numbers ---


@pytest.mark.parametrize("block", [4 << 20, 3000])
def test_the_product_is_added_to_the_modules_that_have_one(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.table.BLOCK_BYTES", block)
    base = hf_tensors(load(saved(tmp_path / "jax")).params)
    tensors = lora(SHAPES)
    found = merged(tmp_path, write_adapter(tmp_path / "adapter", tensors))
    assert_near(found, expected(base, tensors, dict.fromkeys(SHAPES, 8 / 4)))
    untouched = [name for name in base if name.removesuffix(".weight") not in SHAPES]
    assert len(untouched) == 17
    for name in untouched:
        assert found[name].tobytes() == base[name].tobytes(), name
    assert (
        np.abs(
            found["model.layers.0.self_attn.q_proj.weight"]
            - base["model.layers.0.self_attn.q_proj.weight"]
        ).max()
        > 0.1
    )


def test_the_sum_is_rounded_once_to_the_models_dtype(tmp_path: Path) -> None:
    tensors = lora(SHAPES, dtype=ml_dtypes.bfloat16)
    adapter = write_adapter(tmp_path / "adapter", tensors)
    base = hf_tensors(load(saved(tmp_path / "jax", dtype=ml_dtypes.bfloat16)).params)
    found = merged(tmp_path, adapter)
    wanted = expected(base, tensors, dict.fromkeys(SHAPES, 2))
    for name in SHAPES:
        array = found[f"{name}.weight"]
        assert array.dtype == ml_dtypes.bfloat16
        exact = wanted[f"{name}.weight"]
        # Half a unit in the last of bfloat16's eight bits, and float32's own error.
        assert (np.abs(array.astype(np.float64) - exact) <= np.abs(exact) * 2**-8 + 1e-6).all()
    assert np.mean(array == exact.astype(np.float32).astype(ml_dtypes.bfloat16)) > 0.999


SCALED: dict[str, tuple[dict, float]] = {
    "alpha over r": ({}, 2.0),
    "rslora": ({"use_rslora": True}, 4.0),
    "a scale": ({"scale": -0.5}, -1.0),
    "an alpha that is no integer": ({"lora_alpha": 0.5}, 0.125),
}


@pytest.mark.parametrize(("changes", "scaling"), SCALED.values(), ids=SCALED.keys())
def test_every_scaling(tmp_path: Path, changes: dict, scaling: float) -> None:
    base = hf_tensors(load(saved(tmp_path / "jax")).params)
    tensors = lora(SHAPES)
    options = {key: changes.pop(key) for key in ("scale",) if key in changes}
    found = merged(tmp_path, write_adapter(tmp_path / "adapter", tensors, **changes), **options)
    assert_near(found, expected(base, tensors, dict.fromkeys(SHAPES, scaling)))


def test_rank_and_alpha_patterns_are_per_module(tmp_path: Path) -> None:
    base = hf_tensors(load(saved(tmp_path / "jax")).params)
    tensors = lora({name: shape for name, shape in SHAPES.items() if "v_proj" in name})
    tensors |= lora({"model.layers.0.self_attn.q_proj": Q}, rank=2)
    tensors |= lora({"model.layers.1.self_attn.q_proj": Q}, rank=3)
    adapter = write_adapter(
        tmp_path / "adapter",
        tensors,
        rank_pattern={"layers.0.self_attn.q_proj": 2, r"model\.layers\.\d\..*q_proj": 3},
        alpha_pattern={"^model.layers.1.self_attn.q_proj": 7, "1.self_attn.q_proj": 12},
    )
    scalings = {name: 2.0 for name in SHAPES if "v_proj" in name}
    scalings |= {"model.layers.0.self_attn.q_proj": 8 / 2}
    scalings |= {"model.layers.1.self_attn.q_proj": 7 / 3}
    assert_near(merged(tmp_path, adapter), expected(base, tensors, scalings))


TARGETS: dict[str, tuple[dict, list[str]]] = {
    "a regular expression": (
        {"target_modules": r".*layers\.1\.(self_attn|mlp)\.(q_proj|v_proj)"},
        ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"],
    ),
    "a layer": (
        {"layers_to_transform": [1], "target_modules": ["v_proj"]},
        ["model.layers.1.self_attn.v_proj"],
    ),
    "a layer as a number, with a pattern": (
        {"layers_to_transform": 0, "layers_pattern": "layers", "target_modules": ["v_proj"]},
        ["model.layers.0.self_attn.v_proj"],
    ),
    "whole names": (
        {"target_modules": ["model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
        ["model.layers.0.self_attn.q_proj"],
    ),
    "some excluded": (
        {"exclude_modules": ["q_proj", "layers.0.self_attn.v_proj"]},
        ["model.layers.1.self_attn.v_proj"],
    ),
}


@pytest.mark.parametrize(("changes", "modules"), TARGETS.values(), ids=TARGETS.keys())
def test_what_is_targeted(tmp_path: Path, changes: dict, modules: list[str]) -> None:
    base = hf_tensors(load(saved(tmp_path / "jax")).params)
    tensors = lora({module: SHAPES[module] for module in modules})
    found = merged(tmp_path, write_adapter(tmp_path / "adapter", tensors, **changes))
    assert_near(found, expected(base, tensors, dict.fromkeys(modules, 2)))
    # The same settings with the tensors of every module are not this adapter.
    write_adapter(tmp_path / "more", lora(SHAPES), **changes)
    with pytest.raises(ValueError, match=r"lora_A\.weight is not named by target_modules"):
        merge(tmp_path / "jax", tmp_path / "more", tmp_path / "other")
    write_adapter(tmp_path / "less", lora({HEAD: (101, 48)}), **changes)
    with pytest.raises(ValueError, match=r"target_modules names .*, but its lora_A is missing"):
        merge(tmp_path / "jax", tmp_path / "less", tmp_path / "other")


def test_embedding_and_head_have_parts_of_their_own(tmp_path: Path) -> None:
    base = hf_tensors(load(saved(tmp_path / "jax")).params)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 101)), rng.standard_normal((48, 4)) / 8
    tensors = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    tensors |= lora({HEAD: (101, 48)})
    # PEFT saves an embedding that has an adapter, too; here it is another than the model's.
    tensors[f"{EMBEDDING}.base_layer.weight"] = base[f"{EMBEDDING}.weight"] + np.float32(1)
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["embed_tokens", HEAD])
    wanted = expected(base, tensors, {HEAD: 2.0})
    wanted[f"{EMBEDDING}.weight"] += 1 + 2 * (b @ a).T
    assert_near(merged(tmp_path, adapter), wanted)


def test_saved_modules_take_the_place_of_the_models(tmp_path: Path) -> None:
    base = hf_tensors(load(saved(tmp_path / "jax", dtype=np.float16)).params)
    rng = np.random.default_rng(1)
    new = {
        f"{module}.weight": rng.standard_normal(base[f"{module}.weight"].shape).astype(np.float32)
        for module in (EMBEDDING, HEAD, NORM, "model.layers.0.input_layernorm")
    }
    saved_modules = ["embed_tokens", "lm_head", "model.norm", "layers.0.input_layernorm"]
    tensors = {**lora(SHAPES), **new}
    adapter = write_adapter(tmp_path / "adapter", tensors, modules_to_save=saved_modules)
    found = merged(tmp_path, adapter)
    for name, array in new.items():
        assert found[name].tobytes() == array.astype(np.float16).tobytes(), name


def logits(folder: Path) -> np.ndarray:
    model = load(folder)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 101, (1, 20)))
    return np.asarray(forward(model.params, tokens, model.config)[0])


TIED = replace(TINY, tie_embeddings=True)


@pytest.mark.parametrize("module", [EMBEDDING, HEAD])
def test_a_tied_head_is_untied_by_a_saved_module(tmp_path: Path, module: str) -> None:
    base = hf_tensors(load(saved(tmp_path / "jax", TIED)).params)
    new = np.random.default_rng(1).standard_normal((101, 48)).astype(np.float32)
    tensors = {**lora(SHAPES), f"{module}.weight": new}
    name = module.rpartition(".")[2]
    adapter = write_adapter(tmp_path / "adapter", tensors, modules_to_save=[name])
    found = merged(tmp_path, adapter)
    other = HEAD if module == EMBEDDING else EMBEDDING
    assert np.array_equal(found[f"{module}.weight"], new)
    assert np.array_equal(found[f"{other}.weight"], base[f"{EMBEDDING}.weight"])
    assert not load(tmp_path / "out").config.tie_embeddings
    manifest = verify(tmp_path / "out")
    assert "note: the output matrix is no longer the embedding" in " ".join(manifest["decisions"])


def test_a_tied_model_stays_tied_if_both_are_saved_alike(tmp_path: Path) -> None:
    saved(tmp_path / "jax", TIED)
    new = np.random.default_rng(1).standard_normal((101, 48)).astype(np.float32)
    tensors = {**lora(SHAPES), f"{EMBEDDING}.weight": new, f"{HEAD}.weight": new}
    merge(tmp_path / "jax", write_adapter(tmp_path / "adapter", tensors), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config.tie_embeddings
    assert np.array_equal(model.params.embedding, new)
    assert not any(d.startswith("note") for d in verify(tmp_path / "out")["decisions"])


def test_an_adapter_of_a_tied_embedding_leaves_the_head_as_it_was(tmp_path: Path) -> None:
    base = hf_tensors(load(saved(tmp_path / "jax", TIED)).params)[f"{EMBEDDING}.weight"]
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 101)), rng.standard_normal((48, 4)) / 8
    parts = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    tensors = {name: array.astype(np.float32) for name, array in parts.items()}
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["embed_tokens"])
    found = merged(tmp_path, adapter)
    assert np.array_equal(found[f"{HEAD}.weight"], base)
    wanted = base + 2 * (b @ a).T
    np.testing.assert_allclose(found[f"{EMBEDDING}.weight"], wanted, rtol=0, atol=2e-6)


# --- what is refused ---

KINDS: dict[str, tuple[dict, str]] = {
    "DoRA": ({"use_dora": True}, "DoRA is not supported; merge it with PEFT's merge_and_unload"),
    "IA3": ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only 'LORA'"),
    "LoHa": ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
    "no type": ({"peft_type": None}, "peft_type None is not supported"),
    "biases": ({"bias": "lora_only"}, "bias 'lora_only' is not supported, only 'none'"),
    "a bias of B": ({"lora_bias": True}, r"LoRA with a bias \(lora_bias\) is not supported"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "aLoRA, which depends on the tokens before it,"),
    "QALoRA": ({"use_qalora": True}, "QALoRA is not supported"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "tokens": ({"trainable_token_indices": [5]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["x"]}, "target_parameters"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changed the base model"),
    "OLoRA": ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    "an unknown key": ({"new_magic": 3}, "unknown keys new_magic; .* delete them"),
    "a rank of text": ({"r": "8"}, "r '8' is not a positive integer"),
    "a rank of zero": ({"r": 0}, "r 0 is not a positive integer"),
    "an alpha that is NaN": ({"lora_alpha": float("nan")}, "lora_alpha nan is not a number"),
    "an alpha of 400 digits": ({"lora_alpha": 10**400}, "lora_alpha 10+ is not a number"),
    "a rank of a pattern": ({"rank_pattern": {"q_proj": -1}}, "rank_pattern of q_proj -1 is not"),
    "a pattern that is a list": ({"alpha_pattern": [1]}, r"alpha_pattern \[1\] is not an object"),
    "targets of numbers": ({"target_modules": [3]}, r"target_modules \[3\] is not a list"),
    "layers of text": ({"layers_to_transform": "1"}, "layers_to_transform '1' is not a list"),
    "a flag of text": ({"use_rslora": "yes"}, "use_rslora 'yes' is not true or false"),
    "a bad expression": ({"target_modules": "(("}, "a pattern .* cannot be used: .*unterminated"),
    "a saved module without weight": (
        {"modules_to_save": ["lm_head"]},
        "modules_to_save names lm_head, but its weight is missing",
    ),
}


@pytest.mark.parametrize(("changes", "message"), KINDS.values(), ids=KINDS.keys())
def test_other_adapters_are_refused_by_name(tmp_path: Path, changes: dict, message: str) -> None:
    saved(tmp_path / "jax")
    write_adapter(tmp_path / "adapter", lora(SHAPES), **changes)
    with pytest.raises(ValueError, match=message) as caught:
        merge(tmp_path / "jax", tmp_path / "adapter", tmp_path / "out")
    assert str(tmp_path / "adapter") in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "jax"]


LAYER = "model.layers.0.self_attn.q_proj"
MISFITS: dict[str, tuple[dict[str, tuple[int, ...] | None], str]] = {
    "a rank that the config does not say": (
        {f"{LAYER}.lora_A.weight": (8, 48), f"{LAYER}.lora_B.weight": (96, 8)},
        r"q_proj.lora_A.weight has shape \[8, 48\], config and model say \[4, 48\]",
    ),
    "another width": ({f"{LAYER}.lora_A.weight": (4, 64)}, r"has shape \[4, 64\], .* \[4, 48\]"),
    "half a pair": ({f"{LAYER}.lora_B.weight": None}, "one of lora_A and lora_B"),
    "a layer too many": (
        {"model.layers.2.self_attn.q_proj.lora_A.weight": (4, 48)},
        r"layers.2.self_attn.q_proj.lora_A.weight has no place in the model",
    ),
    "a classifier": ({"score.weight": (2, 48)}, "score.weight has no place in the model"),
    "a bias": ({f"{LAYER}.bias": (96,)}, "q_proj.bias has no place in the model"),
    "an adapter's name": (
        {f"{LAYER}.lora_A.default.weight": (4, 48)},
        r"lora_A.default.weight has no place in the model",
    ),
    "DoRA's magnitudes": ({f"{LAYER}.lora_magnitude_vector": (96,)}, "DoRA is not supported"),
    "a bias of B": ({f"{LAYER}.lora_B.bias": (96,)}, "LoRA with a bias is not supported"),
    "a norm that nobody saved": ({f"{NORM}.weight": (48,)}, "is not named by modules_to_save"),
    "a larger vocabulary": (
        {f"{EMBEDDING}.weight": (104, 48)},
        r"embed_tokens.weight has shape \[104, 48\], config and model say \[101, 48\]",
    ),
}


@pytest.mark.parametrize(("shapes", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_is_named(tmp_path: Path, shapes: dict, message: str) -> None:
    saved(tmp_path / "jax")
    tensors = lora(SHAPES)
    for name, shape in shapes.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = np.ones(shape, np.float32)
    write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(ValueError, match=message):
        merge(tmp_path / "jax", tmp_path / "adapter", tmp_path / "out")


def test_a_pattern_that_takes_for_ever_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.formats.patterns._SECONDS", 1)
    saved(tmp_path / "jax")
    write_adapter(tmp_path / "adapter", lora(SHAPES), target_modules=r"(([\w.]+)+)+!")
    with pytest.raises(ValueError, match="takes more than 1 s to match; replace it by a list"):
        merge(tmp_path / "jax", tmp_path / "adapter", tmp_path / "out")


def test_an_int8_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "plain", replace(TINY, rope_scaling=None))
    to_gguf(tmp_path / "plain", tmp_path / "model.gguf")
    to_jax(tmp_path / "model.gguf", tmp_path / "jax", quantize="int8")
    write_adapter(tmp_path / "adapter", lora(SHAPES))
    with pytest.raises(ValueError, match="jax is quantised; convert the source again without"):
        merge(tmp_path / "jax", tmp_path / "adapter", tmp_path / "out")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "jax", dtype=np.float16)
    tensors = lora(SHAPES)
    tensors[f"{LAYER}.lora_B.weight"][3] = 1e6
    write_adapter(tmp_path / "large", tensors)
    with pytest.raises(ValueError, match=r"q_proj.weight overflows float16"):
        merge(tmp_path / "jax", tmp_path / "large", tmp_path / "out")
    tensors[f"{LAYER}.lora_B.weight"][3] = np.nan
    write_adapter(tmp_path / "nan", tensors)
    with pytest.raises(ValueError, match=r"q_proj.lora_A.weight .* holds NaN .*; the ada"):
        merge(tmp_path / "jax", tmp_path / "nan", tmp_path / "out")
    write_adapter(tmp_path / "alpha", lora(SHAPES), lora_alpha=1e308)
    with pytest.raises(ValueError, match=r"alpha: what .* holds NaN or infinity; the adapter is"):
        merge(tmp_path / "jax", tmp_path / "alpha", tmp_path / "out")
    with pytest.raises(ValueError, match="scale inf is not a finite number"):
        merge(tmp_path / "jax", tmp_path / "nan", tmp_path / "out", scale=float("inf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alpha", "jax", "large", "nan"]


def test_what_is_no_adapter_folder_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "jax")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"empty/adapter_config\.json is missing"):
        merge(tmp_path / "jax", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="file is a file; name the folder that holds adapter_"):
        merge(tmp_path / "jax", tmp_path / "file", tmp_path / "out")
    (tmp_path / "empty" / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(FileNotFoundError, match=r"holds neither adapter_model\.safetensors nor"):
        merge(tmp_path / "jax", tmp_path / "empty", tmp_path / "out")


# --- the command and what it leaves ---


def test_the_command_says_what_it_decided(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    config = replace(TINY, vocab_size=300)
    files = {JSON: sentencepiece_like(), GENERATION: generation()}
    tokenizer = tokenizer_from_files(files)
    save(tmp_path / "jax", Model(config, sharp_params(5, config), tokenizer))
    adapter = write_adapter(tmp_path / "adapter", lora(SHAPES))
    (adapter / "tokenizer.json").write_bytes(sentencepiece_like())  # which needs no word
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    arguments = ["merge", *(str(tmp_path / name) for name in ("jax", "adapter", "out"))]
    assert main([*arguments, "--scale", "0.5"]) == 0
    out, error = capfd.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    assert error.startswith("note: chat_template.jinja of adapter not used: the merged model has")
    assert error.count("\n") == 1
    assert load(tmp_path / "out").tokenizer.files == files
    manifest = verify(tmp_path / "out")
    assert manifest["adapter"]["scale"] == 0.5
    assert manifest["adapter"]["base_model"] == "somebody/a-model"
    assert {*manifest["adapter"]["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
    base = verify(tmp_path / "jax")
    for name, entry in base["files"].items():
        assert manifest["source"]["files"][name] == entry
    assert main(arguments) == 1
    assert "exists already" in capfd.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert verify(tmp_path / "out")["adapter"]["scale"] == 1.0


def test_nothing_of_the_source_or_the_adapter_is_touched(tmp_path: Path) -> None:
    saved(tmp_path / "jax")
    write_adapter(tmp_path / "adapter", lora(SHAPES))
    before = bits(load(tmp_path / "jax").params)
    for inside in ("jax/out", "adapter/out"):
        with pytest.raises(ValueError, match="lie inside each other"):
            merge(tmp_path / "jax", tmp_path / "adapter", tmp_path / inside)
    merge(tmp_path / "jax", tmp_path / "adapter", tmp_path / "out")
    assert bits(load(tmp_path / "jax").params) == before != bits(load(tmp_path / "out").params)


# --- PEFT itself ---

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PEFT: dict[str, tuple[Config, dict]] = {
    "all linear layers": (TINY, {"target_modules": "all-linear", "r": 8, "lora_alpha": 16}),
    "rslora and patterns": (
        TINY,
        {
            "target_modules": ALL,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 16},
            "alpha_pattern": {r"layers\.0\..*": 3, "down_proj": 32},
        },
    ),
    "an expression, with layers": (
        TINY,
        {"target_modules": r"model\.layers\.[01]\.(self_attn\.o_proj|mlp\..*_proj)"},
    ),
    "layers": (TINY, {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]}),
    "embedding and head": (
        TINY,
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "fan_in_fan_out": True},
    ),
    "saved modules": (
        TINY,
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "a tied head that is saved": (
        TIED,
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    ),
    "a tied embedding that is saved": (
        TIED,
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    ),
}


def peft_adapter(folder: Path, config: Config, settings: dict) -> Any:
    """A model of PEFT's with random parts, saved and read again as a user would read it."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers_reference import transformers_model

    params = sharp_params(5, config)
    model = peft.get_peft_model(
        transformers_model(params, config), peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            noise = torch.randn(tensor.shape, generator=generator) / 8
            tensor.data = noise + (1 if tensor.ndim == 1 else 0)
    model.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(transformers_model(params, config), folder).eval()


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "settings"), PEFT.values(), ids=PEFT.keys())
def test_the_result_is_pefts_own_merge(
    tmp_path: Path,
    config: Config,
    settings: dict,
    record_property: Callable[[str, object], None],
) -> None:
    theirs = peft_adapter(tmp_path / "adapter", config, settings).merge_and_unload().state_dict()
    found = merged(tmp_path, tmp_path / "adapter") if saved(tmp_path / "jax", config) else {}
    assert load(tmp_path / "out").config.tie_embeddings == (f"{HEAD}.weight" not in found)
    worst = 0.0
    for name, array in found.items():
        wanted = theirs[name].numpy()
        units = np.abs(array - wanted) / np.spacing(np.maximum(np.abs(wanted), 1))
        worst = max(worst, units.max())
    record_property("merge, units in the last place at 1", float(worst))
    # Sums of up to 16 terms, in another order; a missing term is a hundred thousand units.
    assert worst <= 4


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_tied_model_with_an_adapter_computes_what_peft_computes_unmerged(
    tmp_path: Path, module: str
) -> None:
    """PEFT's merge adds to both, because they are one; its unmerged model is the one trained."""
    from transformers_reference import transformers_logits

    model = peft_adapter(tmp_path / "adapter", TIED, {"target_modules": [module, "q_proj"]})
    saved(tmp_path / "jax", TIED)
    merge(tmp_path / "jax", tmp_path / "adapter", tmp_path / "out")
    tokens = np.random.default_rng(0).integers(0, 101, (1, 20))
    np.testing.assert_allclose(
        logits(tmp_path / "out"), transformers_logits(model, tokens), rtol=0, atol=1e-3
    )


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_in_a_bin_file_goes_through_the_guarded_reader(tmp_path: Path) -> None:
    import torch

    saved(tmp_path / "jax")
    tensors = lora(SHAPES)
    found = merged(tmp_path, write_adapter(tmp_path / "adapter", tensors))
    folder = write_adapter(tmp_path / "bin", tensors)
    (folder / "adapter_model.safetensors").unlink()
    named = {f"base_model.model.{name}": torch.tensor(array) for name, array in tensors.items()}
    torch.save(named, folder / "adapter_model.bin")
    merge(tmp_path / "jax", folder, tmp_path / "again")
    again = hf_tensors(load(tmp_path / "again").params)
    assert all(np.array_equal(again[name], array) for name, array in found.items())
    torch.save({**named, "x": Exception}, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin"):
        merge(tmp_path / "jax", folder, tmp_path / "other")
