"""llama.cpp, through llama-cpp-python, on a GGUF file of random weights."""

import importlib.metadata
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jax_llama3.checkpoint.folder import drop_cached_pages, sync
from jax_llama3.model.config import Config
from jax_llama3.model.params import abstract_params, named_leaves

from ..formats.gguf.file import rope_divisors
from ..table import NAMES, flat_shape
from . import Run

_PART = 512  # prompt tokens per call, as ours
_DIVISORS = "rope_freqs.weight"


def llama_cpp_runner(config: Config, dtype: str, capacity: int) -> tuple[str, Run]:
    """The system's name with its version, and a function that times one test."""
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("llama.cpp needs: pip install llama-cpp-python") from None
    context = _load(llama_cpp, config, dtype, capacity)
    memory: Any = llama_cpp.llama_get_memory(context)

    def decode(tokens: int) -> None:
        for start in range(0, tokens, _PART):
            count = min(_PART, tokens - start)
            ids = (llama_cpp.llama_token * count)(*[1] * count)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, count)):
                raise RuntimeError("llama_decode failed; is the cache too small?")

    def run(test: str, tokens: int, depth: int, batch: int) -> float:
        if batch != 1:
            raise ValueError("llama.cpp is timed with one row; use -b 1")
        if depth + tokens > capacity:  # which llama.cpp would end the process for
            raise ValueError(f"{depth + tokens} tokens do not fit a cache of {capacity}")
        llama_cpp.llama_memory_clear(memory, True)
        decode(depth)
        llama_cpp.llama_synchronize(context)
        start = time.perf_counter()
        for _ in range(tokens if test == "tg" else 1):
            decode(1 if test == "tg" else tokens)
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            np.ctypeslib.as_array(logits, (config.vocab_size,)).argmax()
        return time.perf_counter() - start

    version = importlib.metadata.version("llama-cpp-python")
    return f"llama.cpp (llama-cpp-python {version})", run


def _load(llama_cpp: Any, config: Config, dtype: str, capacity: int) -> Any:
    """A context of a model of random weights, from a file that lives no longer than this call."""
    threads = len(os.sched_getaffinity(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        _write(path, config, dtype)
        # llama.cpp maps the file. Read from the disk, as a user's file is, it lies in larger pages of
        # memory than a file that was just written, and llama.cpp is 3 to 4 % faster.
        sync(path)
        drop_cached_pages(path)
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
    if not model:
        raise RuntimeError("llama.cpp refused the model")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = capacity
    settings.n_batch = settings.n_ubatch = _PART
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    return context


def _write(path: Path, config: Config, dtype: str) -> None:
    """A GGUF file without a vocabulary, matrix by matrix."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    shapes = _shapes(config)
    kinds = dict.fromkeys(shapes, gguf.GGMLQuantizationType.F32)
    kinds |= {name: _matrix_kind(gguf, dtype) for name in shapes if len(shapes[name]) == 2}
    for name, shape in shapes.items():
        bytes_each = 4 if kinds[name] == gguf.GGMLQuantizationType.F32 else 2
        size = math.prod(shape) * bytes_each
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = _values(name, shape, config, generator)
        # One at a time: neither memory nor the disk holds the weights twice.
        writer.write_tensor_data(gguf.quantize(values, kinds[name]))
    writer.close()


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the file, in the file's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    if config.rope_scaling is not None:
        shapes[_DIVISORS] = (config.head_dim // 2,)
    for ours, leaf in named_leaves(abstract_params(config, np.float32)):
        prefix, _, name = ours.rpartition(".")
        theirs = NAMES["gguf"][name].format(prefix.removeprefix("layers."))
        shapes[theirs] = tuple(flat_shape(ours, leaf.shape))
    return shapes


def _matrix_kind(gguf: Any, dtype: str) -> Any:
    kinds = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    if dtype not in kinds:
        raise ValueError(f"llama.cpp is timed in {', '.join(kinds)}, not in {dtype}")
    return gguf.GGMLQuantizationType[kinds[dtype]]


def _values(
    name: str, shape: tuple[int, ...], config: Config, generator: np.random.Generator
) -> np.ndarray:
    if name == _DIVISORS and config.rope_scaling is not None:
        return rope_divisors(config, config.rope_scaling).astype(np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = generator.standard_normal(shape, np.float32)
    values *= np.float32(0.02)
    return values
