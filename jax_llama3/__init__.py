"""Llama 3 inference in JAX: pure functions over a parameter pytree. All that is public is here."""

from .runtime.garbage import collection_paused

with collection_paused():
    from .api import Score, apply_chat_template, generate, score, stream_generate
    from .checkpoint.format import Model
    from .checkpoint.loading import load
    from .checkpoint.saving import save
    from .decoding.doors import decode, forward, prefill
    from .decoding.sampling import Sampler, sample
    from .model.cache import Cache, init_cache
    from .model.config import Config, RopeScaling
    from .model.params import Layer, Params, abstract_params, count_params, init_params
    from .model.quantization import Quantized, quantize
    from .text.completion import Completion

__version__ = "0.1.0"  # a literal, which pyproject.toml reads without importing anything

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
