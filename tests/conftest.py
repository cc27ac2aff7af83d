"""What every test runs under: checked shapes, strict promotion, two CPU devices, no leaked tracers."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook("jax_llama3", "beartype.beartype")

import jax
import pytest

from convert.fetch import fetch
from jax_llama3 import Model, load

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def default_model() -> Model:
    """The default model in float32, fetched if this machine does not have it yet."""
    return load(fetch("smollm2-135m-instruct"))
