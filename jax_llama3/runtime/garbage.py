"""When Python collects garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """A context without garbage collection, for work whose objects stay, such as imports and traces.

    Of the 0.5 s that importing jax takes, collections would take 0.05 s. After the block the new
    objects count as old, so that only a full collection, which is rare, visits them.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if not frozen:  # unfreezing would also unfreeze what the caller had frozen
            gc.unfreeze()
        if enabled:
            gc.enable()
