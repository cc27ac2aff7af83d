"""The optional kernels for a CPU: whether this process has them, and their names in XLA.

They are compiled by numba, called through XLA's foreign function interface (jax.ffi), and divide their
work among XLA's own threads.
"""

import ctypes
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

GEMV = "jax_llama3_gemv"
GEMM = "jax_llama3_gemm"
DECODE_ATTENTION = "jax_llama3_decode_attention"
PREFILL_ATTENTION = "jax_llama3_prefill_attention"


@functools.cache
def has_kernels() -> bool:
    """Whether XLA has the kernels in this process.

    The first call compiles them, or reads what numba kept of that, and makes them known to XLA.
    Without numba the answer is no; what numba cannot compile or keep is a warning.
    """
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
    from .compiled import decode_attention, gemv
    from .compiled.tiles import HAS_FLOATS

    found = {GEMV: gemv.handler, DECODE_ATTENTION: decode_attention.handler}
    if HAS_FLOATS:
        from .compiled import gemm, prefill_attention

        found |= {GEMM: gemm.handler, PREFILL_ATTENTION: prefill_attention.handler}
    return found
