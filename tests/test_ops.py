"""Every form of the operations gives the same logits, and the one switch chooses by shape alone."""

import dataclasses
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import TINY, sharp_params

from jax_llama3 import Params, abstract_params, decode, init_cache, prefill, quantize
from jax_llama3.decoding.programs import choose_ops
from jax_llama3.kernels import ops_for
from jax_llama3.kernels.cpu.ops import NUMBA, XLA
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model import network
from jax_llama3.model.ops import PLAIN, Ops

# Widths that every kernel takes.
CONFIG = dataclasses.replace(
    TINY, dim=96, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=192, vocab_size=128
)
TOKENS = np.arange(2 * 70).reshape(2, 70) * 7 % CONFIG.vocab_size


def weights(kind: str) -> tuple[Params, object]:
    """Weights, and the dtype of a cache for them."""
    wide = sharp_params(0, CONFIG)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide)
    return {
        "float32": (wide, jnp.float32),
        "bfloat16": (narrow, jnp.bfloat16),
        "int8 weights": (quantize(wide), jnp.float32),
        "int8 weights, bfloat16": (quantize(narrow), jnp.bfloat16),
        "int8 cache": (wide, jnp.int8),
    }[kind]


def all_logits(params: Params, dtype: object, ops: Ops, rows: int) -> np.ndarray:
    """After a prompt, after more of it, and after three single tokens."""
    cache = init_cache(CONFIG, rows, 128, dtype)
    tokens, found = TOKENS[:rows], []
    for part in (tokens[:, :50], tokens[:, 50:67]):
        lengths = np.full(rows, part.shape[1])
        logits, cache = prefill(params, part, lengths, cache, CONFIG, ops=ops)
        found.append(logits)
    for index in range(67, 70):
        logits, cache = decode(params, tokens[:, index], cache, CONFIG, ops=ops)
        found.append(logits)
    return np.stack(found)


@cache
def plain_logits(kind: str, rows: int) -> np.ndarray:
    """What every form is compared with."""
    return all_logits(*weights(kind), PLAIN, rows)


@cache
def exact_logits(kind: str) -> np.ndarray:
    """With the same numbers in float32."""
    narrow, _ = weights(kind)
    wide = jax.tree.map(
        lambda leaf: leaf if leaf.dtype == jnp.int8 else leaf.astype(jnp.float32), narrow
    )
    return all_logits(wide, jnp.float32, PLAIN, 2)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ("float32", 1e-4),
        ("int8 weights", 1e-4),
        ("int8 cache", 1e-2),  # a number of float32 noise may round to the next int8 value
    ],
)
def test_all_forms_give_the_same_logits(kind: str, tolerance: float, rows: int, form: Ops) -> None:
    found = all_logits(*weights(kind), form, rows)
    expected = plain_logits(kind, rows)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "int8 weights, bfloat16"])
def test_in_bfloat16_no_form_is_further_from_float32_than_the_plain_one(
    kind: str, form: Ops
) -> None:
    error = np.std(all_logits(*weights(kind), form, 2) - exact_logits(kind))
    plain_error = np.std(plain_logits(kind, 2) - exact_logits(kind))
    assert 0 < plain_error < 0.1
    assert error <= 1.25 * plain_error  # which numbers are rounded differs with the processor


def test_the_kernels_run_where_they_are_given() -> None:
    """Otherwise all forms could agree because they are one."""
    if not has_kernels():
        pytest.skip("no numba")
    from jax_llama3.kernels.cpu.compiled.tiles import HAS_FLOATS, HAS_TILES

    params = sharp_params(0, CONFIG)
    cache = jax.eval_shape(lambda: init_cache(CONFIG, 1, 128, jnp.float32))
    program = jax.jit(network.forward, static_argnames=("config", "ops"))

    def names(new: int, ops: Ops) -> set[str]:
        tokens = jax.ShapeDtypeStruct((1, new), jnp.int32)
        text = program.lower(params, tokens, CONFIG, cache, ops=ops).as_text()
        kinds = ("gemv", "gemm", "decode_attention", "prefill_attention")
        return {kind for kind in kinds if f"jax_llama3_{kind}" in text}

    assert names(1, NUMBA) == {"gemv", "decode_attention"}
    if HAS_FLOATS and not HAS_TILES:
        assert names(64, NUMBA) == {"gemm", "prefill_attention"}
    assert names(1, XLA) == names(64, XLA) == names(1, PLAIN) == set()


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu", "METAL"])
def test_other_platforms_compute_with_the_plain_operations(platform: str) -> None:
    assert ops_for(platform, 1, 1) is ops_for(platform, 4, 512, tapped=True) is PLAIN


def test_a_cpu_takes_the_kernels_but_for_short_prompts_and_taps() -> None:
    fast = NUMBA if has_kernels() else XLA
    assert ops_for("cpu", 1, 1) == ops_for("cpu", 16, 1) == ops_for("cpu", 1, 17) == fast
    assert ops_for("cpu", 1, 16) == ops_for("cpu", 8, 2) == XLA
    for new in (1, 512):
        assert ops_for("cpu", 1, new, tapped=True) == fast._replace(attend=PLAIN.attend)
    assert ops_for("cpu", 1, 16, tapped=True) == XLA._replace(attend=PLAIN.attend)


def test_traced_weights_are_taken_to_be_where_the_default_device_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    abstract = abstract_params(CONFIG, jnp.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    assert choose_ops(abstract, 1, 1) is PLAIN
    for device in (jax.devices()[0], "cpu"):
        with jax.default_device(device):
            assert choose_ops(abstract, 1, 1) == ops_for("cpu", 1, 1)


ALONE = """
import jax.numpy as jnp
from jax_llama3.kernels.cpu.ops import NUMBA
x, weight = jnp.ones((1, 64)), jnp.ones((32, 64))
assert (NUMBA.products(x, (weight,))[0] == 64).all()
q, k = jnp.ones((1, 1, 2, 32)), jnp.ones((1, 8, 2, 32))
assert (NUMBA.attend(q, k, k, jnp.array([[3]])) == 1).all()
"""


def test_the_kernels_need_no_word_before_their_first_use() -> None:
    subprocess.run([sys.executable, "-c", ALONE], check=True)


def test_operations_are_hashable_and_compile_once() -> None:
    assert hash(ops_for("cpu", 1, 1)) == hash(ops_for("cpu", 1, 1))
    assert len({PLAIN, XLA, NUMBA, ops_for("cpu", 1, 512, tapped=True)}) == 4
