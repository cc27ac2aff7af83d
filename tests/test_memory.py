"""What XLA allocates for a step: exact figures, and the first to change when an upgrade spoils a form."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from random_models import replace
from shapes import DEFAULT_SHAPE

from jax_llama3 import Cache, Params, abstract_params, init_cache
from jax_llama3.bench.presets import preset
from jax_llama3.decoding.loop import Rules, State, decode_many, padded_stop_ids
from jax_llama3.decoding.programs import choose_ops, decode_compiled, decode_step
from jax_llama3.kernels.cpu.ops import NUMBA
from jax_llama3.model.ops import PLAIN, Ops
from jax_llama3.model.taps import no_tap

pytestmark = pytest.mark.xla_pin

LLAMA_3_2_1B = replace(preset("llama3.2-1b"), n_layers=2)  # of 16


def abstract_cache(dtype: object) -> object:
    return jax.eval_shape(lambda: init_cache(DEFAULT_SHAPE, 1, 512, dtype))


def compiled_step(params: Params, tokens: object, cache: object) -> jax.stages.Compiled:
    ops = choose_ops(params, 1, 1)
    return decode_compiled.lower(params, tokens, cache, DEFAULT_SHAPE, no_tap, ops).compile()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_decode_step_makes_no_copy_of_a_weight(dtype: object) -> None:
    params = abstract_params(DEFAULT_SHAPE, dtype)
    tokens = jax.ShapeDtypeStruct((1,), jnp.int32)
    step = compiled_step(params, tokens, abstract_cache(dtype))
    # The smallest matrix is 0.2 MB, the float32 table of the embedding 113 MB.
    assert step.memory_analysis().temp_size_in_bytes < 5e6
    # The donated cache is written in place: no copy of its shape.
    name = {"float32": "f32", "bfloat16": "bf16"}[jnp.dtype(dtype).name]
    assert not re.findall(rf"= {name}\[1,512,3,64\]\S* copy\(", step.as_text())


def test_a_decode_step_computes_its_sines_once() -> None:
    params, tokens = (
        abstract_params(DEFAULT_SHAPE, jnp.bfloat16),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    step = compiled_step(params, tokens, abstract_cache(jnp.bfloat16))
    text = step.as_text()
    # One in each of two branches that are alike, none in a layer.
    assert [len(re.findall(rf" {name}\(", text)) for name in ("sine", "cosine")] == [2, 2]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_decode_loop_makes_no_copy_of_a_weight(dtype: object) -> None:
    shape = jax.ShapeDtypeStruct
    state = State(
        tokens=shape((1,), jnp.int32),
        cache=abstract_cache(dtype),
        active=shape((1,), bool),
        seen=shape((1, 0), bool),
        step=shape((), jnp.int32),
    )
    params = abstract_params(DEFAULT_SHAPE, dtype)
    rules, ops = Rules(None, padded_stop_ids(()), {}), choose_ops(params, 1, 1)
    lowered = decode_many.lower(params, state, rules, 8, DEFAULT_SHAPE, ops)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 5e6


def test_no_fast_form_of_the_product_copies_a_weight_of_llama_3_2_1b(form: Ops) -> None:
    if form is PLAIN:
        pytest.skip(
            "XLA's CPU backend widens a whole bfloat16 weight for one row of the plain form"
        )
    config = LLAMA_3_2_1B
    cache = jax.eval_shape(lambda: init_cache(config, 1, 512, jnp.bfloat16))
    state = (abstract_params(config, jnp.bfloat16), jax.ShapeDtypeStruct((1,), jnp.int32), cache)

    def steps(params: Params, tokens: jax.Array, cache: Cache) -> tuple:
        # In a loop, where XLA would hoist what does not change.
        return lax.fori_loop(
            0,
            4,
            lambda _, carry: (*decode_step(params, tokens, carry[1], config, no_tap, form),),
            (logits, cache),
        )

    logits = jnp.zeros((1, config.vocab_size), jnp.float32)
    step = jax.jit(steps, donate_argnums=2).lower(*state).compile()
    assert ("jax_llama3_gemv" in step.as_text()) == (form is NUMBA)
    # The widened head alone would be 1,050 MB.
    assert step.memory_analysis().temp_size_in_bytes < 50e6


def test_writing_a_slot_leaves_the_rest_of_a_narrow_cache_alone() -> None:
    params = abstract_params(DEFAULT_SHAPE, jnp.bfloat16)
    cache = jax.eval_shape(lambda: init_cache(DEFAULT_SHAPE, 1, 8192, jnp.bfloat16))
    tokens = jax.ShapeDtypeStruct((1,), jnp.int32)
    text = compiled_step(params, tokens, cache).as_text()
    writes = [line for line in text.splitlines() if "dynamic-update-slice(" in line]
    assert any("[1,8192,3,64]" in line for line in writes)
    # In float32 XLA would rewrite the whole cache, slot by slot.
    assert not any("f32[1,8192,3,64]" in line for line in writes)
