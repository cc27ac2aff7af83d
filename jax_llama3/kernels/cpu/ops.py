"""A CPU's operations: which form runs for which shapes and dtypes.

A program that was traced for a CPU may still be lowered for another platform, so each operation holds
the plain form too.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ...model.config import Config
from ...model.linear import Products, Weight
from ...model.ops import PLAIN, Attend, Ops
from ...model.quantization import KV, Quantized
from ...model.taps import Tap, is_tapped, no_tap
from .attention import attend_span
from .decode_attention import decode_attention, serves_decode_attention
from .gemm import gemm, serves_gemm
from .gemv import gemv, serves_gemv
from .prefill_attention import prefill_attention, serves_prefill_attention
from .products import xla_products
from .registration import has_kernels

_FEW_ROWS = 3  # more are faster as a product of XLA's


def _on_cpu_products(
    cpu: Products, x: Float[Array, "M C"], weights: tuple[Weight, ...]
) -> tuple[Array, ...]:
    return lax.platform_dependent(x, weights, cpu=cpu, default=PLAIN.products)


def _numba_products(x: Float[Array, "M C"], weights: tuple[Weight, ...]) -> tuple[Array, ...]:
    if not has_kernels():  # otherwise this makes them known to XLA
        return xla_products(x, weights)
    stored = tuple(each.values if isinstance(each, Quantized) else each for each in weights)
    if serves_gemm(x, stored):
        sums = gemm(x, stored)
    elif x.shape[0] <= _FEW_ROWS and serves_gemv(x, stored):
        sums = gemv(x.astype(jnp.float32), stored)
    else:
        return xla_products(x, weights)
    return tuple(
        each * weight.scale[None] if isinstance(weight, Quantized) else each
        for each, weight in zip(sums, weights, strict=True)
    )


def _on_cpu_attend(
    cpu: Attend,
    q: Float[Array, "B T N H"],
    k: KV,
    v: KV,
    positions: Int[Array, "B T"],
    tap: Tap = no_tap,
) -> Float[Array, "B T N H"]:
    if is_tapped(tap):
        raise ValueError(
            "these operations show no scores to a tap; use model.ops.PLAIN's attention"
        )
    # Elsewhere a branch makes the device wait for the host, which costs more than it saves.
    return lax.platform_dependent(q, k, v, positions, cpu=cpu, default=PLAIN.attend)


def _numba_attend(
    q: Float[Array, "B T N H"], k: KV, v: KV, positions: Int[Array, "B T"]
) -> Float[Array, "B T N H"]:
    if not has_kernels():
        return attend_span(q, k, v, positions)
    if serves_decode_attention(q, k, v):
        return decode_attention(q, k, v, positions)
    if serves_prefill_attention(q, k, v):
        return prefill_attention(q, k, v, positions)
    return attend_span(q, k, v, positions)


def _rotations(
    positions: Int[Array, "B T"], config: Config
) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
    def plain(
        positions: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
        return PLAIN.rotations(positions, config)

    def computed_once(
        positions: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
        # XLA's CPU backend computes a sine anew in every layer and head that reads it, a hundredth of
        # a token's time, and no barrier keeps it from that. What a branch returns it computes once.
        return lax.cond(jnp.any(positions >= 0), plain, plain, positions)

    if positions.shape[1] > 1:
        return plain(positions)
    return lax.platform_dependent(positions, cpu=computed_once, default=plain)


# Without numba: XLA alone, in the forms that its CPU backend runs fast.
XLA = Ops(partial(_on_cpu_products, xla_products), partial(_on_cpu_attend, attend_span), _rotations)
NUMBA = Ops(
    partial(_on_cpu_products, _numba_products), partial(_on_cpu_attend, _numba_attend), _rotations
)
