"""Many rows times weights on a CPU, at the speed of its vector units: an optional kernel.

XLA's own product of bfloat16 prepares the weights anew for every call and reaches about 0.8 of that; int8
it multiplies as float32. The kernel reads weights as they lie and prepares x instead.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from .calls import product_types, with_product_derivatives
from .registration import GEMM

_DTYPES = ("bfloat16", "int8", "float32")
_ROWS, _WIDTH, _OUTPUTS = 16, 32, 8  # of x and of the weights: whole vectors and whole tiles
_FEWEST, _FEWEST_PAIRS = 12, 4  # rows of x; XLA's product, or `gemv`, is faster for fewer


def serves_gemm(x: Any, weights: Sequence[Any]) -> bool:
    """Whether the kernel takes x [M C] and weights [O C] of such dtypes, and is the fastest for them."""
    rows, width = x.shape
    dtypes = {jnp.dtype(each.dtype).name for each in (x, *weights)}
    whole = width % _WIDTH == 0 < width and all(each.shape[0] % _OUTPUTS == 0 for each in weights)
    if not (whole and dtypes <= {*_DTYPES} and rows >= _FEWEST_PAIRS):
        return False
    from .compiled.tiles import HAS_FLOATS, HAS_PAIRS, HAS_TILES

    bfloat16 = dtypes == {"bfloat16"}
    # XLA multiplies bfloat16 by AMX tiles, which this kernel does not use.
    if HAS_TILES and bfloat16:
        return False
    return HAS_FLOATS and rows >= (_FEWEST_PAIRS if HAS_PAIRS and bfloat16 else _FEWEST)


@with_product_derivatives
def gemm(
    x: Float[Array, "M C"], weights: tuple[Num[Array, "_ C"], ...]
) -> tuple[Float[Array, "M _"], ...]:
    """x times each weight [O C] over C, summed in float32; x is bfloat16 or float32.

    Subnormal numbers (below 1e-38) are taken as zero.
    """
    from .compiled.tiles import HAS_PAIRS

    rows = x.shape[0]
    if not HAS_PAIRS or any(each.dtype == jnp.float32 for each in weights):
        x = x.astype(jnp.float32)
    x = jnp.pad(x, ((0, -rows % _ROWS), (0, 0)))
    # The first result is memory in which the kernel prepares x.
    types = [jax.eval_shape(lambda: x), *product_types(x, weights)]
    call = jax.ffi.ffi_call(GEMM, types, vmap_method="sequential")
    return tuple(product[:rows] for product in call(x, *weights)[1:])
