"""The optional kernels for a CPU: whether they can be had, and their names in XLA.

They are compiled by numba, called through XLA's foreign function interface (jax.ffi), and share their
work out to XLA's own threads.
"""

import ctypes
import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

ROW_PRODUCTS = "jax_llama3_row_products"
MATRIX_PRODUCTS = "jax_llama3_matrix_products"
ATTENTION = "jax_llama3_attention"


def has_kernels() -> bool:
    """Whether this process computes on a CPU and has numba to compile the kernels with."""
    return jax.default_backend() == "cpu" and _register()


@functools.cache
def _register() -> bool:
    """Compile the kernels and make them known to XLA, once a process; numba keeps them for others."""
    if sys.maxsize < 2**32 or sys.byteorder != "little":
        return False
    try:
        from . import attention_kernel_code, row_kernel_code
        from .tile_code import HAS_FLOATS
    except (ImportError, RuntimeError):  # no numba, none for this numpy, or no folder for it to use
        return False
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    kernels = {ROW_PRODUCTS: row_kernel_code, ATTENTION: attention_kernel_code}
    if HAS_FLOATS:
        from . import matrix_kernel_code

        kernels[MATRIX_PRODUCTS] = matrix_kernel_code
    for name, code in kernels.items():
        capsule = new_capsule(code.handler.address, None, None)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return True


def differentiable(products: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """Give a kernel for the products of x [M C] with weights [O C] the derivatives of products."""
    function = jax.custom_jvp(products)

    @function.defjvp
    def tangents(primals: tuple, changes: tuple) -> tuple[tuple, tuple]:
        (x, weights), (x_change, weight_changes) = primals, changes
        x, x_change = x.astype(jnp.float32), x_change.astype(jnp.float32)
        found = []
        for weight, weight_change in zip(weights, weight_changes, strict=True):
            change = x_change @ weight.astype(jnp.float32).T
            if weight.dtype != jnp.int8:  # whole numbers have no tangent
                change += x @ weight_change.astype(jnp.float32).T
            found.append(change)
        return function(*primals), tuple(found)

    return function
