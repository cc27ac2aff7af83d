"""Rows shared out to devices by `jax.shard_map` compute what they compute on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from queries import draw
from random_models import TINY, sharp_params

from jax_llama3 import Params, decode, forward, init_cache, prefill
from jax_llama3.model.ops import Ops
from jax_llama3.model.quantization import quantize

# Widths that the kernels take.
CONFIG = dataclasses.replace(TINY, dim=96, ffn_dim=192, vocab_size=128)
TOKENS = np.arange(2 * 2 * 20).reshape(4, 20) % CONFIG.vocab_size


def whole(params: Params, tokens: jax.Array) -> jax.Array:
    return forward(params, tokens, CONFIG)[0]


def cached(params: Params, tokens: jax.Array) -> jax.Array:
    rows, length = tokens.shape
    cache = init_cache(CONFIG, rows, 32, jnp.float32)
    _, cache = prefill(params, tokens, jnp.full(rows, length), cache, CONFIG)
    return decode(params, tokens[:, 0], cache, CONFIG)[0]


@pytest.mark.parametrize("function", [whole, cached])
@pytest.mark.parametrize("quantized", [False, True])
def test_rows_may_be_split_among_devices(function: object, quantized: bool) -> None:
    params = sharp_params(0, CONFIG)
    params = quantize(params) if quantized else params
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
    split = jax.shard_map(function, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"))
    found, alone = jax.jit(split)(params, TOKENS), jax.jit(function)(params, TOKENS)
    assert len(found.sharding.device_set) == 2
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("split", [0, 1, 2, 3])
def test_attention_varies_by_device_where_any_operand_does(
    tokens: int, split: int, form: Ops
) -> None:
    q, k, v = draw((2, tokens, 4, 32), 0), draw((2, 40, 2, 32), 1), draw((2, 40, 2, 32), 2)
    operands = [q, k, v, jnp.broadcast_to(jnp.arange(tokens), (2, tokens))]
    places = [P("rows") if index == split else P() for index in range(4)]
    halves = [each[:1] for each in operands]
    halves[split] = operands[split]
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
    each = jax.shard_map(form.attend, mesh=mesh, in_specs=tuple(places), out_specs=P("rows"))
    found = jax.jit(each)(*halves)
    whole = [
        jnp.broadcast_to(half, full.shape) for half, full in zip(halves, operands, strict=True)
    ]
    np.testing.assert_allclose(found, form.attend(*whole), rtol=1e-4, atol=1e-5)
