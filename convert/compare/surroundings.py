"""What the reference libraries run in: silence, and a model-parallel world of one process."""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def world_of_one() -> Iterator[None]:
    """The model-parallel world that Meta's layers ask for, of this process alone."""
    import torch.distributed as distributed
    from fairscale.nn.model_parallel import initialize

    if distributed.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints
                initialize.initialize_model_parallel(1)
            yield
        finally:
            initialize.destroy_model_parallel()
            distributed.destroy_process_group()


@contextlib.contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """A context in which transformers gives no hints, and shows progress on a terminal only."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            yield
    finally:
        logging.set_verbosity(level)
