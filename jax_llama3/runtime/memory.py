"""Memory on the host: in huge pages, and what becomes of what XLA frees."""

import ctypes
import mmap
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np

ALIGNMENT = 64  # of memory that XLA takes over without a copy
_TOGETHER_BYTES = 1 << 26  # so that few arrays share a page with what is not theirs

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 1 GiB, for its next allocation.

    glibc gives blocks over 32 MB back at once, and XLA takes one of that size for each layer of a long
    prompt: getting its pages anew is 12 % of the time that 512 tokens of Llama 3.2 1B take.
    """
    _glibc("mallopt", _M_MMAP_THRESHOLD, _KEPT_BYTES)
    _glibc("mallopt", _M_TRIM_THRESHOLD, _KEPT_BYTES)


def _glibc(name: str, *numbers: int) -> None:
    """Call a function of glibc's, where there is one: musl has none of these."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
    if function is not None:
        function(*numbers)


def ask_for_huge_pages(pages: mmap.mmap) -> None:
    """Let memory lie in huge pages, where the system has some: to read it is up to a tenth faster."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)


def own_arrays(wanted: Sequence[Any], *, huge: bool = False) -> list[np.ndarray]:
    """Arrays of zeros like others, in pages of their own, which JAX can take over without a copy.

    They lie one after another, and their memory goes when the last of them goes. `huge` asks for huge
    pages; in a virtual machine the host may have to find each one first: 1 to 5 s for 2.5 GB.
    """
    starts, end = [], 0
    for each in wanted:
        starts.append(end)
        end += -(-each.size * each.dtype.itemsize // ALIGNMENT) * ALIGNMENT
    pages = mmap.mmap(-1, max(end, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        ask_for_huge_pages(pages)
    return [
        np.frombuffer(pages, each.dtype, each.size, start).reshape(each.shape)
        for each, start in zip(wanted, starts, strict=True)
    ]


def move_to_huge_pages(leaves: list[jax.Array], moved: Callable[[int], Any]) -> None:
    """Put copies of a CPU's arrays, in huge pages, in their places, and so let go of them.

    `moved` is told the bytes of those that are done.
    """
    first = 0
    while first < len(leaves):
        last, nbytes = first, 0
        while last < len(leaves) and nbytes < _TOGETHER_BYTES:
            nbytes += leaves[last].nbytes
            last += 1
        copies = own_arrays(leaves[first:last], huge=True)
        for index, copy in zip(range(first, last), copies, strict=True):
            np.copyto(copy, np.asarray(leaves[index]))
            leaves[index] = jax.device_put(copy, leaves[index].device)
        _glibc("malloc_trim", 0)  # else what is freed below what is in use stays
        moved(nbytes)
        first = last


def peak_memory() -> float:
    """Gigabytes (1e9 bytes) that were in use at the most: the device's, on a CPU the process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
