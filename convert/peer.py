"""Another system as a child process that times itself: python -m convert.peer NAME.

It speaks JSON lines. The first that it reads holds the config, the dtype and the cache's capacity;
every further one asks for a test. It answers each with a line: seconds, or a one-line error. Weights
are random: speed does not depend on them.
"""

import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from jax_llama3.config import Config, config_from_dict

Run = Callable[[str, int, int, int], float]  # of test, tokens, depth, batch; the seconds it took


def main() -> None:
    """Answer on what was standard output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _leave)
    systems = {"transformers": _transformers, "llama.cpp": _llama_cpp}
    run: Run | None = None
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            if run is None:
                config = config_from_dict(asked["config"])
                if sys.argv[1] not in systems:
                    raise ValueError(f"not a known system; known are {', '.join(systems)}")
                name, run = systems[sys.argv[1]](config, asked["dtype"], asked["capacity"])
                answer: dict[str, Any] = {"system": name}
            else:
                if asked["test"] not in ("pp", "tg"):
                    raise ValueError(f"{asked['test']!r} is no test; known are pp and tg")
                values = [asked[name] for name in ("test", "tokens", "depth", "batch")]
                answer = {"seconds": run(*values)}
        except ImportError as error:
            hint = "install it with: pip install 'jax_llama3[compare]'"
            answer = {"error": str(error) if "pip install" in str(error) else f"{error}; {hint}"}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        answers.write(json.dumps(answer) + "\n")


def _leave(*_: Any) -> NoReturn:
    """Asked to end: unwinds, so that temporary files are removed."""
    sys.exit(0)


def _transformers(config: Config, dtype: str, capacity: int) -> tuple[str, Run]:
    import torch
    import transformers

    model = _random_model(config, dtype)
    argument = cache_argument(model)

    def read(ids: torch.Tensor, cache: transformers.Cache) -> torch.Tensor:
        # The cache is filled in place.
        return model(ids, use_cache=True, logits_to_keep=1, **{argument: cache}).logits[:, -1:]

    @torch.inference_mode()
    def run(test: str, tokens: int, depth: int, batch: int) -> float:
        cache = transformers.DynamicCache(config=model.config)
        if depth:
            read(torch.ones((batch, depth), dtype=torch.long), cache)
        prompt = torch.ones((batch, tokens), dtype=torch.long)
        token = prompt[:, :1]
        start = time.perf_counter()
        if test == "pp":
            read(prompt, cache)
            return time.perf_counter() - start
        for _ in range(tokens):
            token = read(token, cache).argmax(-1)
        return time.perf_counter() - start

    return f"transformers {transformers.__version__}, torch {torch.__version__}", run


def cache_argument(model: Any) -> str:
    """What the model's forward calls its cache: transformers 5.24 renamed it."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _random_model(config: Config, dtype: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from .huggingface_config import config_values

    values = config_values(config, dtype, None, [])
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))  # made in it, not cast to it afterwards
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


def _llama_cpp(config: Config, dtype: str, capacity: int) -> tuple[str, Run]:
    from .llama_cpp_peer import llama_cpp_runner

    return llama_cpp_runner(config, dtype, capacity)


if __name__ == "__main__":
    main()
