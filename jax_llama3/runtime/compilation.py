"""Programs that XLA compiles: kept for later processes, counted and timed."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.monitoring

_COMPILE = "/jax/core/compile/backend_compile_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_TRACE = "/jax/core/compile/jaxpr_trace_duration"
# How JAX's warning begins where a program that was kept is not whole.
TORN = "Error reading persistent compilation cache entry"


@dataclass
class Compilations:
    """Programs compiled and the seconds their tracing, lowering and compiling took."""

    count: int = 0
    seconds: float = 0.0


def keep_compilations(folder: Path) -> None:
    """Keep compiled programs in a private folder, from which later processes load them.

    JAX's own variables have precedence: JAX_COMPILATION_CACHE_DIR names another folder, and with
    JAX_ENABLE_COMPILATION_CACHE=false nothing is kept. A folder that cannot be made is no error, and
    a program that another process has not written to its end is compiled here as well.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written costs time, nothing else
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a first token needs twenty of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.filterwarnings("ignore", TORN)


@contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Count what is compiled inside the block; the record is final when the block ends."""
    seen = Compilations()
    traced: dict[str, float] = {}

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        name = str(kwargs.get("fun_name", ""))
        if event == _TRACE:
            # A function traced inside another reports its seconds twice; only those that are
            # lowered by themselves, as jit(name), are counted.
            traced[f"jit({name})"] = duration_secs
        elif event == _LOWER:
            seen.seconds += duration_secs + traced.pop(name, 0.0)
        elif event == _COMPILE:
            seen.count += 1
            seen.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
