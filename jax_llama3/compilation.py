"""What XLA compiles while a block runs: how often, and for how many seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax.monitoring

_COMPILE = "/jax/core/compile/backend_compile_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_TRACE = "/jax/core/compile/jaxpr_trace_duration"


@dataclass
class Compilations:
    """Programs compiled and the seconds their tracing, lowering and compiling took."""

    count: int = 0
    seconds: float = 0.0


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
