"""What becomes of memory that XLA frees."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 1 GiB, for its next allocation.

    glibc gives blocks over 32 MB back at once, and XLA takes one of that size for each layer of a long
    prompt: getting its pages anew is 12 % of the time that 512 tokens of Llama 3.2 1B take.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
