"""From a folder to a model that is ready for its prompts: weights are read while XLA compiles."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .checkpoint.format import Model
from .checkpoint.loading import open_model
from .decoding.generation import Request, compile_ahead
from .runtime.garbage import collection_paused


@contextmanager
def starting(
    folder: Path, *, dtype: Any = None
) -> Iterator[tuple[Model, Callable[[Request], Model]]]:
    """The model with the shapes of its weights, and a function that finishes it for a request.

    Threads read the weights from the beginning, so a prompt can be encoded, and be refused, without a
    wait for them. The function compiles what the request's first token needs, and returns the model
    with its weights.
    """
    gc.freeze()  # what was imported stays: no collection needs to look at it again
    with collection_paused(), open_model(folder, dtype=dtype) as (abstract, wait):
        yield abstract, partial(_finish, abstract, wait)


def _finish(abstract: Model, wait: Callable[[], Model], request: Request) -> Model:
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(compile_ahead, abstract.params, request, abstract.config)
        model = wait()
        compiling.result()
    return model
