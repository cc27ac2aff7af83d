"""The loop on the device: a state, and the step that chooses every row's next token."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ..model.cache import Cache
from ..model.config import Config
from ..model.ops import Ops
from ..model.params import Params
from ..model.taps import no_tap
from .programs import decode_step
from .sampling import Settings, choose_tokens, penalize

STEPS = 32  # tokens per row and device call, at most
MOST_STOP_IDS = 64
NO_TOKEN = -1  # in place of a token where a row has stopped


class State(NamedTuple):
    """Everything that changes from token to token."""

    tokens: Int[Array, " B"]  # chosen last, not yet in the cache
    cache: Cache
    active: Bool[Array, " B"]
    seen: Bool[Array, "B V"]  # the row's own tokens, for the repetition penalty; V = 0 without
    step: Int[Array, ""]  # tokens chosen so far


class Rules(NamedTuple):
    """How tokens are chosen and where rows stop: the same for all steps."""

    keys: Key[Array, " B"] | None  # every row's own; None where nothing is drawn
    stop_ids: Int[Array | np.ndarray, " stops"]
    settings: Settings


def padded_stop_ids(stop_ids: Any) -> Int[np.ndarray, " stops"]:
    """Stop ids in one shape, so that another set of them compiles nothing."""
    padding = [NO_TOKEN] * (MOST_STOP_IDS - len(stop_ids))
    return np.array([*stop_ids, *padding], np.int32)


@partial(jax.jit, donate_argnames="cache")
def first_step(
    logits: Float[Array, "B V"],
    cache: Cache,
    seen: Bool[Array | np.ndarray, "B seen"],
    seed: UInt32[Array, ""] | np.uint32,
    stop_ids: Int[Array | np.ndarray, " stops"],
    settings: Settings,
) -> tuple[State, Rules, Int[Array, "B 1"], Float[Array, "B 1"]]:
    """The state and the rules after the prompts, whose last logits choose the rows' first tokens.

    Returned too are these tokens and their log-probabilities. Where nothing is drawn no keys are made:
    to lower what makes them takes 0.02 s.
    """
    batch = logits.shape[0]
    keys = None
    if "temperature" in settings:
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(
            jnp.arange(batch, dtype=jnp.int32)
        )
    rules = Rules(keys, stop_ids, settings)
    state = State(
        tokens=jnp.zeros(batch, jnp.int32),
        cache=cache,
        active=jnp.ones(batch, bool),
        seen=jnp.asarray(seen),  # where nothing is jitted it is still numpy's
        step=jnp.zeros((), jnp.int32),
    )
    state, logprobs = _choose(logits, state, rules)
    return state, rules, state.tokens[:, None], logprobs[:, None]


@partial(jax.jit, static_argnames=("config", "ops"), donate_argnames="state")
def decode_many(
    params: Params,
    state: State,
    rules: Rules,
    limit: Int[Array, ""] | int,
    config: Config,
    ops: Ops,
) -> tuple[State, Int[Array, "B steps"], Float[Array, "B steps"]]:
    """Up to `limit` tokens for every row, fewer when all rows stop, and their log-probabilities.

    A row that has stopped gets NO_TOKEN for each further step.
    """
    batch = state.tokens.shape[0]
    out_tokens = jnp.full((batch, STEPS), NO_TOKEN, jnp.int32)
    out_logprobs = jnp.zeros((batch, STEPS), jnp.float32)

    def unfinished(carry: tuple[Array, State, Array, Array]) -> Bool[Array, ""]:
        index, state, _, _ = carry
        return (index < limit) & jnp.any(state.active)

    def step(carry: tuple[Array, State, Array, Array]) -> tuple[Array, State, Array, Array]:
        index, state, tokens, logprobs = carry
        active, lengths = state.active, state.cache.lengths
        logits, cache = decode_step(params, state.tokens, state.cache, config, no_tap, ops)
        # A row that has stopped stays where it is, so it never runs out of room.
        cache = cache._replace(lengths=jnp.where(active, cache.lengths, lengths))
        state, chosen = _choose(logits, state._replace(cache=cache), rules)
        tokens = tokens.at[:, index].set(jnp.where(active, state.tokens, NO_TOKEN))
        logprobs = logprobs.at[:, index].set(chosen)
        return index + 1, state, tokens, logprobs

    first = (jnp.zeros((), jnp.int32), state, out_tokens, out_logprobs)
    _, state, tokens, logprobs = lax.while_loop(unfinished, step, first)
    return state, tokens, logprobs


def _choose(
    logits: Float[Array, "B V"], state: State, rules: Rules
) -> tuple[State, Float[Array, " B"]]:
    """Choose each row's next token and note what follows from it."""
    before, settings, keys = logits, rules.settings, rules.keys
    if "repetition_penalty" in settings:
        logits = penalize(logits, state.seen, settings["repetition_penalty"])
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step)
    tokens = choose_tokens(keys, logits, settings)
    seen = state.seen
    if "repetition_penalty" in settings:
        seen = seen.at[jnp.arange(len(tokens)), tokens].set(True)
    active = state.active & ~jnp.isin(tokens, rules.stop_ids)
    return State(tokens, state.cache, active, seen, state.step + 1), _logprobs(before, tokens)


def _logprobs(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> Float[Array, " B"]:
    """log_softmax at the tokens."""
    # After the barrier the maximum is a number a row, which XLA would otherwise write V times.
    best = lax.optimization_barrier(jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.log(jnp.sum(jnp.exp(logits - best), axis=-1))
    return (jnp.take_along_axis(logits, tokens[:, None], axis=-1) - best)[:, 0] - total
