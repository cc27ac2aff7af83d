"""Token ids in, token ids out: prefill, then an on-device loop that decodes many tokens per call."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ..model.cache import Cache, init_cache
from ..model.config import Config
from ..model.network import (
    bucket,
    check_tokens,
    decode_step,
    no_tap,
    prefill_programs,
    prefill_unchecked,
)
from ..model.params import Params
from ..model.quantization import activation_dtype
from ..runtime.compilation import count_compilations
from ..runtime.progress import progress
from .sampling import Knobs, Sampler, knobs, penalize, sample_knobs

CHUNK = 512  # prompt tokens per prefill call: bounds the scores, and the shapes ever compiled
_MIN_CAPACITY = 128  # smaller caches would be no faster, only other shapes
STEPS = 32  # tokens per row and device call, at most
_CALL_SECONDS = 0.25  # what a device call should last, so that streaming flows and Ctrl-C works
_STOP_SLOTS = 64  # the stop set's padded size, so that another stop set compiles nothing


class State(NamedTuple):
    """Everything that changes from token to token."""

    tokens: Int[Array, " B"]  # chosen last, not yet in the cache
    cache: Cache
    active: Bool[Array, " B"]
    seen: Bool[Array, "B V"]  # the row's own tokens, for the repetition penalty; V = 0 without
    step: Int[Array, ""]  # tokens chosen so far


class Chunk(NamedTuple):
    """What one device call added: per row its new ids and their log-probabilities."""

    tokens: list[list[int]]
    logprobs: list[list[float]]


class Timings(NamedTuple):
    """Seconds of running, compilation left out."""

    prefill: float
    decode: float


def generate_tokens(
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: Config,
    *,
    max_new_tokens: int,
    sampler: Sampler,
    seed: int,
    stop_ids: Sequence[int],
) -> Iterator[tuple[Chunk, Timings]]:
    """Continue every prompt until a stop id (which is given out) or `max_new_tokens`.

    Row r's choices depend on the seed, r and its own prompt alone: not on the rest of the batch, the
    padding or how the tokens are grouped into chunks. Log-probabilities are the model's own, before
    penalty, temperature and filters. Arguments that cannot be served raise ValueError at the call.
    """
    check_prompts(prompts, config, max_new_tokens, stop_ids)
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, not {seed}")
    return _generate(params, prompts, config, max_new_tokens, sampler, seed, stop_ids)


def compile_ahead(
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: Config,
    *,
    max_new_tokens: int,
    sampler: Sampler,
) -> None:
    """Compile what gives the first token, which `generate_tokens` then finds compiled.

    Of the weights only shapes and dtypes are used, so they may still be on their way.
    """
    with ThreadPoolExecutor(1) as beside:  # one program is compiled while the next is traced
        programs = _first_programs(params, prompts, config, max_new_tokens, knobs(sampler))
        for compiling in [beside.submit(program.compile) for program in programs]:
            compiling.result()


def _first_programs(
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: Config,
    max_new_tokens: int,
    on: Knobs,
) -> Iterator[jax.stages.Lowered]:
    batch, longest = len(prompts), max(map(len, prompts))
    lengths = jax.ShapeDtypeStruct((batch,), np.int32)
    capacity = cache_capacity(longest + max_new_tokens)
    make = _empty_cache.lower(config, batch, capacity, activation_dtype(params))
    yield make
    for width in {bucket(min(longest - start, CHUNK)) for start in range(0, longest, CHUNK)}:
        tokens = jax.ShapeDtypeStruct((batch, width), np.int32)
        yield from prefill_programs(params, tokens, lengths, make.out_info, config)
    logits = jax.ShapeDtypeStruct((batch, config.vocab_size), np.float32)
    seen = _seen(prompts, config, on)
    yield _first.lower(logits, make.out_info, seen, np.uint32(0), padded_stops(()), on)


def cache_capacity(slots: int) -> int:
    """The slots that a cache is made with so that it holds `slots`: few different shapes."""
    return max(bucket(slots), _MIN_CAPACITY)


def padded_stops(stop_ids: Sequence[int]) -> Int[np.ndarray, " stops"]:
    """Stop ids in the one shape that `decode_many` is compiled for."""
    return np.array([*stop_ids, *[-1] * (_STOP_SLOTS - len(stop_ids))], np.int32)


def _generate(
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: Config,
    max_new_tokens: int,
    sampler: Sampler,
    seed: int,
    stop_ids: Sequence[int],
) -> Iterator[tuple[Chunk, Timings]]:
    if max_new_tokens == 0:
        return
    on = knobs(sampler)
    stops = padded_stops(stop_ids)
    seen = _seen(prompts, config, on)
    capacity = cache_capacity(max(map(len, prompts)) + max_new_tokens)
    prefill_seconds, (logits, cache) = _timed(partial(_read, params, prompts, capacity, config))
    first = partial(_first, logits, cache, seen, np.uint32(seed), stops, on)
    seconds, (state, keys, tokens, logprobs) = _timed(first)
    timings = Timings(prefill_seconds, seconds)
    yield _chunk(tokens, logprobs), timings  # before the loop is compiled: nobody waits for that
    done, limit = 1, 1
    if max_new_tokens > 1:
        # An empty call compiles the loop, so that the timings below are of running it.
        state, _, _ = decode_many(params, state, keys, stops, on, 0, config)
    while done < max_new_tokens and np.asarray(state.active).any():
        limit = min(limit, max_new_tokens - done)
        step = partial(decode_many, params, state, keys, stops, on, limit, config)
        seconds, (state, tokens, logprobs) = _timed(step)
        done += limit
        limit = int(np.clip(_CALL_SECONDS / (seconds / limit), 1, STEPS))
        timings = timings._replace(decode=timings.decode + seconds)
        yield _chunk(tokens, logprobs), timings


def check_prompts(
    prompts: Sequence[Sequence[int]],
    config: Config,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
) -> None:
    """Refuse with a ValueError what `generate_tokens` cannot serve."""
    if not prompts:
        raise ValueError("no prompt was given")
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be a whole number, 0 or more, not {max_new_tokens}")
    if len(stop_ids):
        check_tokens(np.asarray(stop_ids), config)
    if len(stop_ids) > _STOP_SLOTS:
        raise ValueError(f"{len(stop_ids)} stop ids; at most {_STOP_SLOTS} are supported")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty; give it at least one token")
        check_tokens(np.asarray(prompt), config)
        room = config.max_seq_len - len(prompt)
        if room < 0:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens and the model's context "
                f"{config.max_seq_len}; shorten it"
            )
        if max_new_tokens > room:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds "
                f"the model's context of {config.max_seq_len}; ask for at most {room}"
            )


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that running `function` took, compilation left out, and its result."""
    start = time.perf_counter()
    with count_compilations() as compiled:
        result = jax.block_until_ready(function())
    elapsed = time.perf_counter() - start
    return max(elapsed - compiled.seconds, 1e-9), result


# One small program in place of one for every kind of array in it.
_empty_cache = jax.jit(init_cache, static_argnums=(0, 1, 2, 3))


def _read(
    params: Params, prompts: Sequence[Sequence[int]], capacity: int, config: Config
) -> tuple[Float[Array, "B V"], Cache]:
    """Prefill an empty cache chunk by chunk; a row shorter than others sits the last chunks out."""
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), bucket(longest)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    cache = _empty_cache(config, len(prompts), capacity, activation_dtype(params))
    logits = None
    starts = range(0, longest, CHUNK)
    bar = progress(longest, "reading the prompt", "token")
    for start in starts:
        chunk = tokens[:, start : start + CHUNK]
        chunk = chunk[:, : bucket(min(longest - start, CHUNK))]
        new = np.clip(lengths - start, 0, CHUNK).astype(np.int32)
        chunk_logits, cache = prefill_unchecked(params, chunk, new, cache, config, no_tap)
        if logits is not None:
            chunk_logits = jnp.where(new[:, None] > 0, chunk_logits, logits)
        logits = chunk_logits
        bar.update(int(new.max()))
    bar.close()
    assert logits is not None
    return logits, cache


def _seen(
    prompts: Sequence[Sequence[int]], config: Config, on: Knobs
) -> Bool[np.ndarray, "B seen"]:
    if "repetition_penalty" not in on:
        return np.zeros((len(prompts), 0), bool)
    seen = np.zeros((len(prompts), config.vocab_size), bool)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    return seen


def _choose(
    logits: Float[Array, "B V"],
    state: State,
    keys: Key[Array, " B"] | None,
    stops: Array,
    on: Knobs,
) -> tuple[State, Float[Array, " B"]]:
    """Choose each row's next token and note what follows from it."""
    before = logits
    if "repetition_penalty" in on:
        logits = penalize(logits, state.seen, on["repetition_penalty"])
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step)
    tokens = sample_knobs(keys, logits, on)
    seen = state.seen
    if "repetition_penalty" in on:
        seen = seen.at[jnp.arange(len(tokens)), tokens].set(True)
    active = state.active & ~jnp.isin(tokens, stops)
    return State(tokens, state.cache, active, seen, state.step + 1), _logprobs(before, tokens)


def _logprobs(logits: Float[Array, "B V"], tokens: Int[Array, " B"]) -> Float[Array, " B"]:
    """log_softmax at the tokens."""
    # Behind the barrier the maximum is a number a row, which XLA would write V times.
    best = lax.optimization_barrier(jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.log(jnp.sum(jnp.exp(logits - best), axis=-1))
    return (jnp.take_along_axis(logits, tokens[:, None], axis=-1) - best)[:, 0] - total


@partial(jax.jit, donate_argnames="cache")
def _first(
    logits: Float[Array, "B V"],
    cache: Cache,
    seen: Bool[Array, "B seen"],
    seed: UInt32[Array, ""],
    stops: Int[Array, " stops"],
    on: Knobs,
) -> tuple[State, Key[Array, " B"] | None, Int[Array, "B 1"], Float[Array, "B 1"]]:
    """The state after the prompt, the rows' keys, and their first tokens from the logits of prefill.

    Where nothing is drawn there are no keys: to lower what makes them takes 0.02 s.
    """
    batch = logits.shape[0]
    keys = None
    if "temperature" in on:
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(batch))
    state = State(
        tokens=jnp.zeros(batch, jnp.int32),
        cache=cache,
        active=jnp.ones(batch, bool),
        seen=seen,
        step=jnp.zeros((), jnp.int32),
    )
    state, logprobs = _choose(logits, state, keys, stops, on)
    return state, keys, state.tokens[:, None], logprobs[:, None]


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def decode_many(
    params: Params,
    state: State,
    keys: Key[Array, " B"] | None,
    stops: Int[Array, " stops"],
    on: Knobs,
    limit: Int[Array, ""] | int,
    config: Config,
) -> tuple[State, Int[Array, "B steps"], Float[Array, "B steps"]]:
    """Up to `limit` tokens for every row, fewer when all rows stop; -1 stands where a row had."""
    batch = state.tokens.shape[0]
    out_tokens = jnp.full((batch, STEPS), -1, jnp.int32)
    out_logprobs = jnp.zeros((batch, STEPS), jnp.float32)

    def unfinished(carry: tuple[Array, State, Array, Array]) -> Bool[Array, ""]:
        index, state, _, _ = carry
        return (index < limit) & jnp.any(state.active)

    def step(carry: tuple[Array, State, Array, Array]) -> tuple[Array, State, Array, Array]:
        index, state, tokens, logprobs = carry
        active, lengths = state.active, state.cache.lengths
        logits, cache = decode_step(params, state.tokens, state.cache, config)
        # A row that has stopped stays where it is, so it never runs out of slots.
        cache = cache._replace(lengths=jnp.where(active, cache.lengths, lengths))
        state, chosen = _choose(logits, state._replace(cache=cache), keys, stops, on)
        tokens = tokens.at[:, index].set(jnp.where(active, state.tokens, -1))
        logprobs = logprobs.at[:, index].set(chosen)
        return index + 1, state, tokens, logprobs

    first = (jnp.zeros((), jnp.int32), state, out_tokens, out_logprobs)
    _, state, tokens, logprobs = lax.while_loop(unfinished, step, first)
    return state, tokens, logprobs


def _chunk(tokens: Int[Array, "B steps"], logprobs: Float[Array, "B steps"]) -> Chunk:
    ids, values = np.asarray(tokens), np.asarray(logprobs)
    if np.isnan(values[ids >= 0]).any():
        raise ValueError(
            "the model's logits are NaN: its weights are damaged or overflow their dtype"
        )
    kept = [ids[row] >= 0 for row in range(len(ids))]
    return Chunk(
        [ids[row, keep].tolist() for row, keep in enumerate(kept)],
        [values[row, keep].tolist() for row, keep in enumerate(kept)],
    )
