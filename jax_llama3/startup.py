"""From a folder to a model that is ready for its prompts: weights are read while XLA compiles."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .api import default_new_tokens
from .checkpoint.format import Model
from .checkpoint.loading import open_model
from .decoding.generation import check_prompts, compile_ahead
from .decoding.sampling import Sampler
from .runtime.garbage import collection_paused


def load_for(
    folder: Path,
    encode: Callable[[Model], list[list[int]]],
    *,
    dtype: Any = None,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
) -> tuple[Model, list[list[int]]]:
    """The model, and the prompts that `encode` makes with its tokenizer.

    Prompts that cannot be served raise ValueError, without a wait for the weights.
    """
    gc.freeze()  # what was imported stays: no collection needs to look at it again
    with collection_paused(), open_model(folder, dtype=dtype) as (abstract, wait):
        prompts = encode(abstract)
        if max_new_tokens is None:
            max_new_tokens = default_new_tokens(prompts, abstract.config)
        check_prompts(prompts, abstract.config, max_new_tokens)
        compile_for = (abstract.params, prompts, abstract.config)
        options = {"max_new_tokens": max_new_tokens, "sampler": sampler or Sampler()}
        with ThreadPoolExecutor(1) as beside:
            compiling = beside.submit(compile_ahead, *compile_for, **options)
            model = wait()
            compiling.result()
    return model, prompts
