"""Where fetched models and compiled programs are kept on this machine."""

import os
from pathlib import Path


def default_folder(name: str) -> Path:
    """The folder of that name in $JAX_LLAMA3_HOME, by default in the user's cache; it need not exist."""
    if home := os.environ.get("JAX_LLAMA3_HOME"):
        return Path(home) / name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jax_llama3" / name
