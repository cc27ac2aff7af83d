"""When Python looks for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for none inside the block.

    What is imported stays, and to look through jax's modules again and again takes 0.07 s of the 0.5
    that importing them takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # with nobody else's frozen objects among them
            gc.freeze()
            gc.unfreeze()  # what is new now counts as old, so the next collection leaves it out
        if enabled:
            gc.enable()
