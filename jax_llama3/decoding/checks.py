"""What cannot be computed is refused on the host, before anything is traced, with the value in the error."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ..model.cache import Cache, capacity
from ..model.config import Config
from ..model.params import Params


def check_rank(tokens: Any, axes: str) -> None:
    """Refuse tokens that have not the axes, given as their letters."""
    if np.ndim(tokens) != len(axes.split()):
        advice = "; one row is tokens[None]" if np.ndim(tokens) == 1 else ""
        raise ValueError(f"tokens have the shape {np.shape(tokens)} instead of [{axes}]{advice}")


def check_tokens(tokens: Int[Array | np.ndarray, "..."], config: Config) -> None:
    """Refuse an empty array and ids outside the vocabulary; under a trace nothing is checked."""
    if tokens.size == 0:
        raise ValueError(f"tokens of shape {tokens.shape} hold no token")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens are {tokens.dtype}, not integers")
    if isinstance(tokens, Tracer):
        return
    ids = np.asarray(tokens)
    wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
    if wrong.size:
        raise ValueError(
            f"token id {int(wrong[0])} is outside the vocabulary of {config.vocab_size}"
        )


def check_lengths(
    lengths: Int[Array | np.ndarray, " B"], tokens: Int[Array | np.ndarray, "B T"]
) -> None:
    """Refuse lengths that are not one for each row of tokens, or not in 1 .. T."""
    if lengths.shape != tokens.shape[:1]:
        raise ValueError(f"lengths {lengths.shape} do not match tokens {tokens.shape}")
    if isinstance(lengths, Tracer):
        return
    values = np.asarray(lengths)
    wrong = values[(values < 1) | (values > tokens.shape[1])]
    if wrong.size:
        raise ValueError(f"length {int(wrong[0])} is not in 1 .. {tokens.shape[1]}")


def check_room(cache: Cache, batch: int, new: Any) -> None:
    """Refuse `new` more tokens (a number, or one per row) where a row has no room left for them.

    A batch of another size is refused too. Under a trace lengths are not known and not checked.
    """
    if batch != cache.lengths.shape[0]:
        raise ValueError(f"the batch has {batch} rows and the cache {cache.lengths.shape[0]}")
    if isinstance(cache.lengths, Tracer) or isinstance(new, Tracer):
        return
    needed = np.asarray(cache.lengths) + np.asarray(new)
    if needed.max() > capacity(cache):
        row = int(needed.argmax())
        raise ValueError(
            f"row {row} needs {int(needed[row])} cache slots and the cache has {capacity(cache)}; "
            "make it with a larger capacity"
        )


def check_tree(params: Params, config: Config, cache: Cache | None) -> None:
    """Refuse weights and a cache that are not of the config's number of layers, or tied otherwise."""
    counts = [len(params.layers)] + ([] if cache is None else [len(cache.k), len(cache.v)])
    if counts != [config.n_layers] * len(counts):
        raise ValueError(f"weights and cache have {counts} layers, the config {config.n_layers}")
    if (params.output is None) != config.tie_embeddings:
        raise ValueError("the config and the weights differ on whether the embedding is tied")


def check_prompts(
    prompts: Sequence[Sequence[int]], config: Config, new: int, filled: Sequence[int]
) -> None:
    """Refuse prompts that with `new` more tokens, after `filled` ones each, exceed the model's context."""
    if not prompts:
        raise ValueError("no prompt was given")
    for row, (prompt, before) in enumerate(zip(prompts, filled, strict=True)):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty; give it at least one token")
        check_tokens(np.asarray(prompt), config)
        room = config.max_seq_len - before - len(prompt)
        after = f" after {before} cached ones" if before else ""
        if room < 0:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens{after} and the model's context "
                f"{config.max_seq_len}; shorten it"
            )
        if new > room:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens{after}; with {new} new ones it exceeds "
                f"the model's context of {config.max_seq_len}; ask for at most {room}"
            )


def check_numbers(logprobs: Float[np.ndarray, "..."]) -> None:
    """Refuse log-probabilities that are NaN, which only damaged or overflowing weights give."""
    if np.isnan(logprobs).any():
        raise ValueError(
            "the model's logits are NaN: its weights are damaged or overflow their dtype"
        )
