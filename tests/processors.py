"""Kernels as a processor with fewer instructions gets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FEWER = [(8, "+avx,+avx2,+fma"), (16, "+avx,+avx2,+fma,+avx512f")]  # lanes of float32, and features


def run_with_features(code: str, features: str, kept: Path) -> None:
    """Run code in a process whose kernels are compiled for these features alone, and kept there."""
    llvm = pytest.importorskip("llvmlite.binding")
    if not set(features.split(",")) <= set(llvm.get_host_cpu_features().flatten().split(",")):
        pytest.skip(f"a processor without {features}")
    environment = os.environ | {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(kept),
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
