"""The optional kernels for a CPU: whether they can be had, and their names in XLA.

They are compiled by numba, called through XLA's foreign function interface (jax.ffi), and share their
work out to XLA's own threads.
"""

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

ROW_PRODUCTS = "jax_llama3_row_products"
MATRIX_PRODUCTS = "jax_llama3_matrix_products"
ATTENTION = "jax_llama3_attention"
PROMPT_ATTENTION = "jax_llama3_prompt_attention"


def has_kernels() -> bool:
    """Whether this process computes on a CPU and has numba to compile the kernels with."""
    return jax.default_backend() == "cpu" and _register()


@functools.cache
def _register() -> bool:
    """Compile the kernels and make them known to XLA, once a process; numba keeps them for others."""
    if sys.maxsize < 2**32 or sys.byteorder != "little":
        return False
    try:
        handlers = _handlers()
    except ImportError:  # no numba, or none for this numpy
        return False
    except Exception as error:  # a full disk, a damaged file: numba says it in any way
        kept = (
            os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "compiled" / "__pycache__"
        )
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        warnings.warn(
            f"slower without the kernels, which numba cannot compile or keep ({reason}); "
            f"make room in {kept}, or delete the damaged *.nbi and *.nbc there",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    for name, handler in handlers.items():
        capsule = new_capsule(handler.address, None, None)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return True


def _handlers() -> dict[str, Any]:
    """The compiled functions that XLA is to call, by their names there."""
    from .compiled import decode_attention as attention_kernel_code
    from .compiled import gemv as row_kernel_code
    from .compiled.tiles import HAS_FLOATS

    found = {ROW_PRODUCTS: row_kernel_code.handler, ATTENTION: attention_kernel_code.handler}
    if HAS_FLOATS:
        from .compiled import gemm as matrix_kernel_code
        from .compiled import prefill_attention as prompt_kernel_code

        found[MATRIX_PRODUCTS] = matrix_kernel_code.handler
        found[PROMPT_ATTENTION] = prompt_kernel_code.handler
    return found


def result_type(like: Any, others: Sequence[Any]) -> jax.ShapeDtypeStruct:
    """The type of `like`, but varying by device in `shard_map` where any of the others does too."""
    return jax.eval_shape(_with_all, like, others)


def _with_all(like: Array, others: Sequence[Array]) -> Array:
    return sum((jnp.sum(each).astype(like.dtype) for each in others), like)


def product_types(x: Any, weights: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Of x [M C] times each weight [O C] in float32; what varies by device in `shard_map` stays so."""
    return [jax.eval_shape(_product, x, weight) for weight in weights]


def _product(x: Array, weight: Array) -> Array:
    return x.astype(jnp.float32) @ weight.astype(jnp.float32).T


def differentiable(products: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """Give a kernel for the products of x [M C] with weights [O C] the derivatives of products."""
    function = jax.custom_jvp(products)

    @function.defjvp
    def tangents(primals: tuple, changes: tuple) -> tuple[tuple, tuple]:
        (x, weights), (x_change, weight_changes) = primals, changes
        found = []
        for weight, weight_change in zip(weights, weight_changes, strict=True):
            change = _product(x_change, weight)
            if weight.dtype != jnp.int8:  # whole numbers have no tangent
                change += _product(x, weight_change)
            found.append(change)
        return function(*primals), tuple(found)

    return function
