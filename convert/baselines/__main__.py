"""Another system as a child process that times itself: python -m convert.baselines NAME.

It speaks JSON lines. The first that it reads holds the config, the dtype and the cache's capacity;
every further one asks for a test. It answers each with a line: seconds, or a one-line error. Weights
are random: speed does not depend on them.
"""

import json
import os
import signal
import sys
from typing import Any, NoReturn

from jax_llama3.model.config import config_from_dict

from . import Run
from .llamacpp import llama_cpp_runner
from .pytorch import torch_compile_runner, transformers_runner

_SYSTEMS = {
    "transformers": transformers_runner,
    "torch.compile": torch_compile_runner,
    "llama.cpp": llama_cpp_runner,
}


def main() -> None:
    """Answer on what was standard output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _leave)
    run: Run | None = None
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            if run is None:
                name, run = _start(sys.argv[1], asked)
                answer: dict[str, Any] = {"system": name}
            else:
                answer = {"seconds": _time(run, asked)}
        except ImportError as error:
            hint = "install it with: pip install 'jax_llama3[compare]'"
            answer = {"error": str(error) if "pip install" in str(error) else f"{error}; {hint}"}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        answers.write(json.dumps(answer) + "\n")


def _leave(*_: Any) -> NoReturn:
    """On SIGTERM: unwind the stack, so that temporary files are removed."""
    sys.exit(0)


def _start(system: str, asked: dict[str, Any]) -> tuple[str, Run]:
    """Build the model; the system's name with its version, and the function that times it."""
    config = config_from_dict(asked["config"])
    if system not in _SYSTEMS:
        raise ValueError(f"not a known system; known are {', '.join(_SYSTEMS)}")
    return _SYSTEMS[system](config, asked["dtype"], asked["capacity"])


def _time(run: Run, asked: dict[str, Any]) -> float:
    if asked["test"] not in ("pp", "tg"):
        raise ValueError(f"{asked['test']!r} is no test; known are pp and tg")
    return run(asked["test"], asked["tokens"], asked["depth"], asked["batch"])


if __name__ == "__main__":
    main()
