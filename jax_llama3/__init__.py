"""Llama 3 inference in JAX: pure functions over a parameter pytree. All that is public is here."""

from .garbage import uncollected

with uncollected():
    from .cache import Cache, init_cache
    from .checkpoint import Model, load, save
    from .completion import Completion
    from .config import Config, RopeScaling
    from .llama import (
        Score,
        apply_chat_template,
        generate,
        score,
        stream_generate,
    )
    from .model import decode, forward, prefill
    from .params import Layer, Params, abstract_params, count_params, init_params
    from .quantization import Quantized, quantize
    from .sample import Sampler, sample

__all__ = [
    "Cache",
    "Completion",
    "Config",
    "Layer",
    "Model",
    "Params",
    "Quantized",
    "RopeScaling",
    "Sampler",
    "Score",
    "abstract_params",
    "apply_chat_template",
    "count_params",
    "decode",
    "forward",
    "generate",
    "init_cache",
    "init_params",
    "load",
    "prefill",
    "quantize",
    "sample",
    "save",
    "score",
    "stream_generate",
]
