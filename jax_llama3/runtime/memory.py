"""Memory of the process: aligned arrays, huge pages, and the allocator that XLA uses on a CPU."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np

ALIGNMENT = 64  # bytes; XLA takes over memory aligned to it without a copy
# Arrays are moved together up to so many bytes, because neighbours share huge pages.
_TOGETHER_BYTES = 1 << 26

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 1 GiB, for its next allocation.

    glibc returns blocks over 32 MB to the system at once, and XLA allocates one of that size for each
    layer of a long prompt. Its page faults are 12 % of the time that 512 tokens of Llama 3.2 1B take.
    Without glibc nothing happens.
    """
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, _KEPT_BYTES)
    _call_glibc("mallopt", _M_TRIM_THRESHOLD, _KEPT_BYTES)


def _call_glibc(name: str, *numbers: int) -> None:
    """Call a function of glibc; do nothing where the C library has none of that name, as musl."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
    if function is not None:
        function(*numbers)


def advise_huge_pages(pages: mmap.mmap) -> None:
    """Ask the system for huge pages, from which reading is up to a tenth faster; it may decline."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)


def aligned_zeros(wanted: Sequence[Any], *, huge: bool = False) -> list[np.ndarray]:
    """Zeros in the shapes and dtypes of `wanted`, aligned so that JAX takes them over without a copy.

    They lie one after another in one mapping, which is freed when the last of them is. `huge` asks for
    huge pages; in a virtual machine the host may have to find each one first: 1 to 5 s for 2.5 GB.
    """
    starts, end = [], 0
    for each in wanted:
        starts.append(end)
        end += -(-each.size * each.dtype.itemsize // ALIGNMENT) * ALIGNMENT
    pages = mmap.mmap(-1, max(end, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        advise_huge_pages(pages)
    return [
        np.frombuffer(pages, each.dtype, each.size, start).reshape(each.shape)
        for each, start in zip(wanted, starts, strict=True)
    ]


def move_to_huge_pages(leaves: list[jax.Array], moved: Callable[[int], Any]) -> None:
    """Replace the arrays of a CPU in the list, one group after another, by copies in huge pages.

    `moved` is called with the bytes of each group.
    """
    first = 0
    while first < len(leaves):
        last, nbytes = first, 0
        while last < len(leaves) and nbytes < _TOGETHER_BYTES:
            nbytes += leaves[last].nbytes
            last += 1
        copies = aligned_zeros(leaves[first:last], huge=True)
        for index, copy in zip(range(first, last), copies, strict=True):
            np.copyto(copy, np.asarray(leaves[index]))
            leaves[index] = jax.device_put(copy, leaves[index].device)
        # glibc by itself keeps free memory that lies below memory in use.
        _call_glibc("malloc_trim", 0)
        moved(nbytes)
        first = last


def peak_memory() -> float:
    """The peak of memory in use, in GB (1e9 bytes): the first device's, or on a CPU the process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
