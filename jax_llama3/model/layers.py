"""The three parts of the network: embedding, one transformer layer, and the head."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from .attention import attend
from .cache import write_cache
from .config import Config
from .linear import linear, linears
from .ops import Ops
from .params import Layer
from .quantization import KV, Quantized, dequantize
from .rope import apply_rope
from .taps import Tap, within

Tables = tuple[Float[Array, "B T R"], Float[Array, "B T R"]]  # cosines and sines, R = H / 2


def embed(
    embedding: Float[Array, "V D"] | Quantized,
    tokens: Int[Array | np.ndarray, "B T"],
    start: Int[Array, " B"],
    config: Config,
    dtype: Any,
    ops: Ops,
) -> tuple[Float[Array, "B T D"], Int[Array, "B T"], Tables]:
    """The tokens' embeddings, their positions from `start` on, and the positions' rotations."""
    positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    return _lookup(embedding, tokens, dtype), positions, ops.rotations(positions, config)


def _lookup(
    embedding: Float[Array, "V D"] | Quantized, tokens: Int[Array | np.ndarray, "B T"], dtype: Any
) -> Float[Array, "B T D"]:
    # Without the barrier XLA's CPU backend widens the whole bfloat16 table to float32 and hoists
    # the copy out of decode loops. An id outside the table gives NaN, not another token's row.
    embedding, tokens = lax.optimization_barrier((embedding, jnp.asarray(tokens)))
    tokens = jnp.where(tokens < 0, embedding.shape[0], tokens)
    rows = jax.tree.map(lambda table: jnp.take(table, tokens, axis=0, mode="fill"), embedding)
    return dequantize(rows, dtype)


def layer(
    weights: Layer,
    x: Float[Array, "B T D"],
    kv: tuple[KV, KV] | None,
    positions: Int[Array, "B T"],
    tables: Tables,
    config: Config,
    tap: Tap,
    ops: Ops,
) -> tuple[Float[Array, "B T D"], tuple[KV, KV]]:
    """One transformer layer: x after it, and the keys and values, in the cache if there is one."""
    x = tap("resid_pre", x)
    h = rms_norm(x, weights.attn_norm, config.norm_eps)
    out, kv = _attention_block(weights, h, kv, positions, tables, within(tap, "attn."), ops)
    x = tap("resid_mid", x + out)
    h = rms_norm(x, weights.ffn_norm, config.norm_eps)
    return tap("resid_post", x + _feed_forward(weights, h, within(tap, "mlp."), ops)), kv


def _attention_block(
    weights: Layer,
    h: Float[Array, "B T D"],
    kv: tuple[KV, KV] | None,
    positions: Int[Array, "B T"],
    tables: Tables,
    tap: Tap,
    ops: Ops,
) -> tuple[Float[Array, "B T D"], tuple[KV, KV]]:
    projections = [("BTD,NHD->BTNH", weights.wq), ("BTD,KHD->BTKH", weights.wk)]
    projections += [("BTD,KHD->BTKH", weights.wv)]
    q, k, v = linears(h, projections, products=ops.products)
    q, k, v = tap("q", apply_rope(q, *tables)), tap("k", apply_rope(k, *tables)), tap("v", v)
    if kv is None:  # every key is used, so a form that reads only the filled part gains nothing
        z = attend(q, k, v, positions, tap)
    else:
        k, v = write_cache(kv[0], k, positions), write_cache(kv[1], v, positions)
        z = ops.attend(q, k, v, positions, tap)
    out = linear("BTNH,DNH->BTD", tap("z", z), weights.wo, products=ops.products)
    return tap("out", out), (k, v)


def _feed_forward(
    weights: Layer, x: Float[Array, "B T D"], tap: Tap, ops: Ops
) -> Float[Array, "B T D"]:
    """SwiGLU (arXiv:2002.05202)."""
    projections = [("BTD,FD->BTF", weights.w_gate), ("BTD,FD->BTF", weights.w_up)]
    gate, up = linears(x, projections, products=ops.products)
    gate, up = tap("gate", gate), tap("up", up)
    # A bfloat16 would be rounded after each of the steps that silu consists of.
    gated = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    down = linear("BTF,DF->BTD", gated.astype(x.dtype), weights.w_down, products=ops.products)
    return tap("out", down)


def rms_norm(
    x: Float[Array, "B T D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "B T D"]:
    """x over its root mean square (arXiv:1910.07467), eps under the root; float32 inside."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight.astype(jnp.float32)[None, None]).astype(x.dtype)


def unembed(
    norm: Float[Array, " D"],
    output: Float[Array, "V D"] | Quantized,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    start: Int[Array, " B"],
    lengths: Int[Array | np.ndarray, " B"] | None,
    capacity: int | None,
    config: Config,
    tap: Tap,
    ops: Ops,
) -> tuple[Float[Array, "B T V"] | Float[Array, "B V"], Int[Array, " B"]]:
    """Logits after each row's last token, or without `lengths` at all positions; and the new lengths."""
    filled = start + (positions.shape[1] if lengths is None else lengths)
    if capacity is not None:
        # This shows only under a trace, where nothing can be refused: a token without a place in the
        # cache gives NaN.
        x = jnp.where((positions < capacity)[..., None], x, jnp.nan)
    if lengths is not None:
        x = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    x = tap("final_norm", rms_norm(x, norm, config.norm_eps))
    logits = linear("BTD,VD->BTV", x, output, jnp.float32, products=ops.products)
    logits = tap("logits", logits)
    return logits if lengths is None else logits[:, 0], filled
