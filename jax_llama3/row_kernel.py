"""A row times weights on a CPU, at memory speed: an optional kernel, compiled by numba.

XLA's own best form reads a bfloat16 weight at about 0.6 of the machine's bandwidth, because it widens
blocks of it in one pass and multiplies them in another. This kernel widens in registers. It is called
through XLA's foreign function interface (jax.ffi) and shares its rows out to XLA's own threads.

The interface hands over C structs, read here by their offsets on 64-bit machines (xla/ffi/api/c_api.h,
version 0.3, kept stable by XLA). Memory is addressed by plain integers.
"""

import ctypes
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

_TARGET = "jax_llama3_row_product"
_DTYPES = ("bfloat16", "int8", "float32")


def has_row_kernel(dtype: Any, width: int) -> bool:
    """Whether the kernel can be had (numba is installed) and takes weights of this dtype and width."""
    known = jnp.dtype(dtype).name in _DTYPES and width % 2 == 0
    return known and jax.default_backend() == "cpu" and _register()


@jax.custom_jvp
def row_products(
    x: Float[Array, "M C"], weights: tuple[Num[Array, "_ C"], ...]
) -> tuple[Float[Array, "M _"], ...]:
    """x times each weight [O C] over C, in float32; x is float32, the weights any of the dtypes."""
    shapes = [jax.ShapeDtypeStruct((x.shape[0], each.shape[0]), jnp.float32) for each in weights]
    return tuple(jax.ffi.ffi_call(_TARGET, shapes, vmap_method="sequential")(x, *weights))


@row_products.defjvp
def _row_products_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x, weights), (x_tangent, weight_tangents) = primals, tangents
    changes = []
    for weight, weight_tangent in zip(weights, weight_tangents, strict=True):
        change = x_tangent @ weight.astype(jnp.float32).T
        if weight.dtype != jnp.int8:  # whole numbers have no tangent
            change += x @ weight_tangent.astype(jnp.float32).T
        changes.append(change)
    return row_products(x, weights), tuple(changes)


@functools.cache
def _register() -> bool:
    """Compile the kernel and make it known to XLA, once a process; numba keeps it for later ones."""
    if sys.maxsize < 2**32 or sys.byteorder != "little":
        return False
    try:
        from .row_kernel_code import handler_address
    except (ImportError, RuntimeError):  # no numba, none for this numpy, or no folder for it to use
        return False
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new_capsule(handler_address(), None, None)
    jax.ffi.register_ffi_target(_TARGET, capsule, platform="cpu")
    return True
