"""Memory that was freed is there for the next allocation."""

import platform
import subprocess
import sys

import pytest

# Faults of the second of two blocks, each freed once it was written.
FAULTS = """
import ctypes, resource, sys
from jax_llama3.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc, nbytes = ctypes.CDLL(None), 64 << 20
libc.malloc.restype = ctypes.c_void_p
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(nbytes)))
    ctypes.memset(block, 1, nbytes)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to")
def test_freed_memory_is_kept() -> None:
    # Left alone, every page comes anew: 32 where they are huge, 16384 where they are not.
    assert faults("keep") < 20 < faults("leave")
