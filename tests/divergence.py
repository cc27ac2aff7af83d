"""Real text for the default model, and how far the choices of two computations on it are apart."""

from pathlib import Path

import jax
import numpy as np

from jax_llama3 import Model, forward

ROOT = Path(__file__).parent.parent
TEXTS = (
    "LICENSE",
    "README.md",
    "README.zh.md",
    "jax_llama3/model/network.py",
    "tests/test_model.py",
)
jitted = jax.jit(forward, static_argnames=("config", "ops"))


def texts(model: Model) -> np.ndarray:
    """English, Chinese and code, 40 pieces of 64 tokens."""
    pieces = []
    for name in TEXTS:
        ids = model.tokenizer.encode((ROOT / name).read_text())
        pieces.append(np.reshape(ids[: 8 * 64], (8, 64)))
    return np.stack(pieces)


def divergence(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(exact || other) in nats, the mean over the positions of each text."""
    p, q = (np.asarray(jax.nn.log_softmax(x.astype(np.float64))) for x in (exact, other))
    return (np.exp(p) * (p - q)).sum(-1).mean(-1)
