"""transformers as it is, and with its decoding step compiled by torch; random weights."""

import inspect
import time
from collections.abc import Callable
from typing import Any

from jax_llama3.model.config import Config

from . import Run


def transformers_runner(config: Config, dtype: str, capacity: int) -> tuple[str, Run]:
    """transformers as it is: no compilation, a cache that grows."""
    import transformers

    model = _random_model(config, dtype)
    run = _torch_run(model, model, lambda: transformers.DynamicCache(config=model.config))
    return _torch_name(), run


def torch_compile_runner(config: Config, dtype: str, capacity: int) -> tuple[str, Run]:
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
