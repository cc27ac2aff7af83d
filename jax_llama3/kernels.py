"""The optional kernels for a CPU: whether they can be had, and their names in XLA.

They are compiled by numba, called through XLA's foreign function interface (jax.ffi), and share their
work out to XLA's own threads.
"""

import ctypes
import functools
import sys

import jax

ROW_PRODUCTS = "jax_llama3_row_products"
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
    except (ImportError, RuntimeError):  # no numba, none for this numpy, or no folder for it to use
        return False
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    for name, code in ((ROW_PRODUCTS, row_kernel_code), (ATTENTION, attention_kernel_code)):
        capsule = new_capsule(code.handler.address, None, None)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return True
