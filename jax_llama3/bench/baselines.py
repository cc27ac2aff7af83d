"""Other systems as child processes, so that they can be timed in turn with this library.

What they are is the converter's part (`python -m convert.baselines`), which alone may import them.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..model.config import Config, config_to_dict

_PATIENCE = 10.0  # seconds for a process to end by itself


@contextmanager
def baseline(
    name: str, config: Config, dtype: str, capacity: int
) -> Iterator[tuple[str, Callable[..., float]]]:
    """The system's name with its version, and a function that gives the seconds of one test.

    That function takes `test` ("pp" or "tg"), `tokens`, `depth` and `batch`. What fails in the other
    process raises ValueError.
    """
    command = [sys.executable, "-m", "convert.baselines", name]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        first = {"config": config_to_dict(config), "dtype": dtype, "capacity": capacity}
        system = _ask(process, name, first)["system"]
        yield system, lambda **test: _ask(process, name, test)["seconds"]
    finally:
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
    process.terminate()  # not killed at once: it may have a file of gigabytes to remove
    try:
        process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _ask(process: subprocess.Popen, name: str, question: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise ValueError(f"{name} ended without an answer, status {process.wait()}")
    answer = json.loads(line)
    if "error" in answer:
        raise ValueError(f"{name}: {answer['error']}")
    return answer
