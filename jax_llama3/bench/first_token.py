"""The first token of a new process: importing, loading, compiling and reading a prompt, together.

    python -m jax_llama3.bench.first_token DIR DTYPE

is the process that is timed; compilations are kept from one to the next.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from ..checkpoint.format import read_config
from ..checkpoint.manifest import read_manifest
from ..decoding.generation import Request, check_request, generate_tokens
from ..runtime.compilation import keep_compilations
from ..runtime.home import default_folder
from ..runtime.progress import progress
from ..startup import starting
from .cost import forward_flops
from .timing import Measurement

_PROMPT = [1] * 16


def time_first_token(folder: Path, dtype: str, repetitions: int) -> Measurement:
    """Time new processes in turn with reading the model's files, after one that fills the caches.

    A rate is one over the seconds from the start of a process to its first token; the bandwidth is
    that of the reading, so the fraction says how much of the time reading alone would take.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be at least 1, not {repetitions}")
    seconds, reading, nbytes = [], [], 0
    with progress(1 + repetitions, "timing first tokens", "process") as bar:
        _seconds(folder, dtype)
        bar.update()
        for _ in range(repetitions):
            start = time.perf_counter()
            nbytes = _read(folder)
            reading.append(time.perf_counter() - start)
            seconds.append(_seconds(folder, dtype))
            bar.update()
    config = read_config(folder)
    typical, plain = statistics.median(seconds), statistics.median(reading)
    rates = [1 / each for each in seconds]
    return Measurement(
        system="jax_llama3",
        test=f"ttft{len(_PROMPT)}",
        batch=1,
        dtype=dtype,
        avg_ts=statistics.mean(rates),
        stddev_ts=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        samples_ts=rates,
        gb_s=nbytes / typical / 1e9,
        bandwidth_gb_s=nbytes / plain / 1e9,
        bandwidth_fraction=plain / typical,
        tflop_s=forward_flops(config, len(_PROMPT), 0, 1) / typical / 1e12,
    )


def _read(folder: Path) -> int:
    """Read all files of a model into memory, which loading it takes at least; returns their bytes."""
    files = [(folder / name).read_bytes() for name in read_manifest(folder)["files"]]
    return sum(map(len, files))


def _seconds(folder: Path, dtype: str) -> float:
    command = [sys.executable, "-m", "jax_llama3.bench.first_token", str(folder), dtype]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if not line:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"the process for the first token ended without one: {last}")
    return seconds


def _main(folder: str, dtype: str) -> None:
    keep_compilations(default_folder("compiled"))
    with starting(Path(folder), dtype=dtype) as (abstract, finish):
        request = check_request(Request([_PROMPT], max_new_tokens=2), abstract.config)
        model = finish(request)
    new, _ = next(generate_tokens(model.params, request, model.config))
    print(new.tokens, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
