"""Another system as a child process that times itself: python -m convert.baselines NAME.

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

from jax_llama3.model.config import Config, config_from_dict

Run = Callable[[str, int, int, int], float]  # of test, tokens, depth, batch; the seconds it took


def main() -> None:
    """Answer on what was standard output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _leave)
    systems = {
        "transformers": _transformers,
        "torch.compile": _torch_compile,
        "llama.cpp": _llama_cpp,
    }
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
    """transformers as it is: no compilation, a cache that grows."""
    import transformers

    model = _random_model(config, dtype)
    run = _torch_run(model, model, lambda: transformers.DynamicCache(config=model.config))
    return _torch_name(), run


def _torch_compile(config: Config, dtype: str, capacity: int) -> tuple[str, Run]:
    """transformers with a cache of fixed size, its decoding step compiled whole by torch."""
    import torch
    import transformers

    model = _random_model(config, dtype)
    cache = transformers.StaticCache(config=model.config, max_cache_len=capacity)
    # CUDA graphs need the cache at one address, so it is emptied and not made anew.
    mode = "reduce-overhead" if torch.cuda.is_available() else "default"
    step = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

    def emptied() -> Any:
        if cache.is_initialized:
            cache.reset()
        return cache

    return f"torch.compile, {_torch_name()}", _torch_run(model, step, emptied)


def _torch_name() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def _torch_run(model: Any, step: Callable, make_cache: Callable[[], Any]) -> Run:
    """Time reading with the model and decoding with the step, on a GPU if torch has one."""
    import torch

    argument = cache_argument(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    def read(forward: Callable, ids: torch.Tensor, cache: Any, start: int) -> torch.Tensor:
        # The cache is filled in place.
        positions = torch.arange(start, start + ids.shape[1], device=device)[None]
        options = {"use_cache": True, "logits_to_keep": 1, argument: cache}
        return forward(ids, position_ids=positions, **options).logits[:, -1:].argmax(-1)

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def run(test: str, tokens: int, depth: int, batch: int) -> float:
        cache = make_cache()
        if depth:
            read(model, torch.ones((batch, depth), dtype=torch.long, device=device), cache, 0)
        prompt = torch.ones((batch, tokens), dtype=torch.long, device=device)
        start = now()
        if test == "pp":
            read(model, prompt, cache, depth)
            return now() - start
        token = prompt[:, :1]
        for index in range(tokens):
            token = read(step, token, cache, depth + index)
        return now() - start

    return run


def cache_argument(model: Any) -> str:
    """What the model's forward calls its cache: transformers 5.24 renamed it."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _random_model(config: Config, dtype: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..formats.huggingface.config import config_values

    values = config_values(config, dtype, None, [])
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))  # made in it, not cast to it afterwards
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


def _llama_cpp(config: Config, dtype: str, capacity: int) -> tuple[str, Run]:
    from .llamacpp import llama_cpp_runner

    return llama_cpp_runner(config, dtype, capacity)


if __name__ == "__main__":
    main()
