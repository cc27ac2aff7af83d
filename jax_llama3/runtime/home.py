"""Where fetched models, and what XLA compiled for them, live on this machine."""

import os
from pathlib import Path


def default_folder(name: str) -> Path:
    """Where fetched models live: $JAX_LLAMA3_HOME, or a folder in the user's cache."""
    if home := os.environ.get("JAX_LLAMA3_HOME"):
        return Path(home) / name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jax_llama3" / name
