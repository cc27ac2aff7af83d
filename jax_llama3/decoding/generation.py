"""Token ids in, token ids out: prompts are read, then the loop on the device is called for many tokens."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..model.cache import Cache, init_cache
from ..model.config import Config
from ..model.params import Params
from ..model.quantization import activation_dtype
from ..model.taps import no_tap
from ..runtime.compilation import count_compilations
from ..runtime.progress import progress
from .checks import check_numbers, check_prompts, check_room, check_tokens, check_tree
from .loop import (
    MOST_STOP_IDS,
    NO_TOKEN,
    STEPS,
    Rules,
    State,
    decode_many,
    first_step,
    padded_stop_ids,
)
from .programs import bucket, choose_ops, lower_with, read_tokens, run_compiled
from .sampling import Sampler, Settings, active_settings

PREFILL_TOKENS = 512  # of a prompt per call: bounds the scores, and the shapes ever compiled
_MIN_CAPACITY = 128  # smaller caches would be no faster, only other shapes
_CALL_SECONDS = 0.25  # what a device call should last, so that streaming flows and Ctrl-C works


class Request(NamedTuple):
    """What is to be generated. `check_request` makes one whose values can be served."""

    prompts: list[list[int]]
    max_new_tokens: int
    sampler: Sampler = Sampler()
    seed: int = 0
    stop_ids: tuple[int, ...] = ()


class NewTokens(NamedTuple):
    """What one device call added: per row its new ids and their log-probabilities."""

    tokens: list[list[int]]
    logprobs: list[list[float]]


class Timings(NamedTuple):
    """Seconds of running, compilation left out."""

    prefill: float
    decode: float


def check_request(request: Request, config: Config, cache: Cache | None = None) -> Request:
    """The request itself; one that cannot be served raises ValueError.

    With a cache the prompts go on after what it holds, for which it needs the room.
    """
    new, seed, stop_ids = request.max_new_tokens, request.seed, request.stop_ids
    if not isinstance(new, Integral) or new < 0:
        raise ValueError(f"max_new_tokens must be a whole number, 0 or more, not {new}")
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, not {seed}")
    if stop_ids:
        check_tokens(np.asarray(stop_ids), config)
    if len(stop_ids) > MOST_STOP_IDS:
        raise ValueError(f"{len(stop_ids)} stop ids; at most {MOST_STOP_IDS} are supported")
    rows = len(request.prompts)
    filled = [0] * rows if cache is None else np.asarray(cache.lengths).tolist()
    if cache is not None:
        lengths = np.array([len(prompt) for prompt in request.prompts])
        check_room(cache, rows, lengths + max(new - 1, 0))
    check_prompts(request.prompts, config, new, filled)
    return request


def generate_tokens(
    params: Params, request: Request, config: Config, *, cache: Cache | None = None
) -> Iterator[tuple[NewTokens, Timings]]:
    """Continue every prompt until a stop id (which is given out) or `max_new_tokens`.

    Row r's choices depend on the seed, r and its own prompt alone: not on the rest of the batch, the
    padding or how many tokens a call makes. Log-probabilities are the model's own, before penalty,
    temperature and filters. A `cache` is donated, and the prompts go on after what it holds; the
    penalty counts the prompts alone.
    """
    check_tree(params, config, cache)
    return _generate(params, request, config, cache)


def compile_ahead(params: Params, request: Request, config: Config) -> None:
    """Compile what gives the first token, which `generate_tokens` then finds compiled.

    Of the weights only shapes and dtypes are used, so they may still be on their way.
    """
    with ThreadPoolExecutor(1) as beside:  # one program is compiled while the next is traced
        compiling: list[Any] = []
        run = lower_with(lambda lowered: compiling.append(beside.submit(lowered.compile)))
        logits, cache = _read_prompts(params, request, config, None, run)
        run(*_first_call(logits, cache, request, config))
        for each in compiling:
            each.result()


def cache_capacity(tokens: int) -> int:
    """The capacity that a cache is made with so that it holds `tokens`: few different shapes."""
    return max(bucket(tokens), _MIN_CAPACITY)


def _generate(
    params: Params, request: Request, config: Config, cache: Cache | None
) -> Iterator[tuple[NewTokens, Timings]]:
    most = request.max_new_tokens
    if most == 0:
        return
    read = partial(_read_prompts, params, request, config, cache)
    prefill_seconds, (logits, cache) = _timed(read)
    first = partial(run_compiled, *_first_call(logits, cache, request, config))
    seconds, (state, rules, tokens, logprobs) = _timed(first)
    timings = Timings(prefill_seconds, seconds)
    # The first token is given out at once: the loop is compiled only after it.
    yield _new_tokens(tokens, logprobs), timings
    loop = _loop(params, state, rules, most - 1, config)
    for seconds, tokens, logprobs in loop:
        timings = timings._replace(decode=timings.decode + seconds)
        yield _new_tokens(tokens, logprobs), timings


def _loop(
    params: Params, state: State, rules: Rules, most: int, config: Config
) -> Iterator[tuple[float, Int[Array, "B steps"], Float[Array, "B steps"]]]:
    """Call the loop on the device until all rows have stopped: seconds, tokens, log-probabilities."""
    if most == 0:
        return
    ops = choose_ops(params, state.tokens.shape[0], 1)
    # An empty call compiles the loop, so that the seconds below are of running it.
    state, _, _ = decode_many(params, state, rules, 0, config, ops)
    done, limit = 0, 1
    while done < most and np.asarray(state.active).any():
        limit = min(limit, most - done)
        step = partial(decode_many, params, state, rules, limit, config, ops)
        seconds, (state, tokens, logprobs) = _timed(step)
        done += limit
        limit = int(np.clip(_CALL_SECONDS / (seconds / limit), 1, STEPS))
        yield seconds, tokens, logprobs


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that running `function` took, compilation left out, and its result."""
    start = time.perf_counter()
    with count_compilations() as compiled:
        result = jax.block_until_ready(function())
    elapsed = time.perf_counter() - start
    return max(elapsed - compiled.seconds, 1e-9), result


# Jitted, because outside of jit every shape of array in the cache would be a program of its own.
_empty_cache = jax.jit(init_cache, static_argnums=(0, 1, 2, 3))


def _read_prompts(
    params: Params,
    request: Request,
    config: Config,
    cache: Cache | None = None,
    run: Callable[..., Any] = run_compiled,
) -> tuple[Any, Any]:
    """Read the prompts part by part; a row shorter than others sits the last parts out.

    Returns the logits after each row's last token, and the cache. `run` is that of
    `programs.read_tokens`.
    """
    prompts = request.prompts
    lengths = np.array([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    tokens = np.zeros((len(prompts), bucket(longest)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    filled: Any = cache
    if cache is None:
        room = cache_capacity(longest + request.max_new_tokens)
        filled = run(_empty_cache, config, len(prompts), room, activation_dtype(params))
    logits: Any = None
    is_read = run is run_compiled
    with progress(longest, "reading the prompt", "token", shown=is_read) as bar:
        for start in range(0, longest, PREFILL_TOKENS):
            part = tokens[:, start : start + PREFILL_TOKENS]
            part = part[:, : bucket(min(longest - start, PREFILL_TOKENS))]
            new = np.clip(lengths - start, 0, PREFILL_TOKENS).astype(np.int32)
            ops = choose_ops(params, *part.shape)
            found, filled = read_tokens(params, part, new, filled, config, no_tap, ops, run)
            logits = found if logits is None else run(_where_new, new, found, logits)
            bar.update(int(new.max()))
    return logits, filled


@jax.jit
def _where_new(
    new: Int[Array, " B"], found: Float[Array, "B V"], before: Float[Array, "B V"]
) -> Float[Array, "B V"]:
    """The logits that were found, but those before for rows without a new token."""
    return jnp.where(new[:, None] > 0, found, before)


def _first_call(logits: Any, cache: Any, request: Request, config: Config) -> tuple[Any, ...]:
    """`first_step` and its arguments."""
    settings = active_settings(request.sampler)
    seen = _seen(request.prompts, config, settings)
    stop_ids = padded_stop_ids(request.stop_ids)
    return first_step, logits, cache, seen, np.uint32(request.seed), stop_ids, settings


def _seen(
    prompts: Sequence[Sequence[int]], config: Config, settings: Settings
) -> Bool[np.ndarray, "B seen"]:
    if "repetition_penalty" not in settings:
        return np.zeros((len(prompts), 0), bool)
    seen = np.zeros((len(prompts), config.vocab_size), bool)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    return seen


def _new_tokens(tokens: Int[Array, "B steps"], logprobs: Float[Array, "B steps"]) -> NewTokens:
    ids, values = np.asarray(tokens), np.asarray(logprobs)
    made = ids != NO_TOKEN
    check_numbers(values[made])
    rows = range(len(ids))
    return NewTokens(
        [ids[row, made[row]].tolist() for row in rows],
        [values[row, made[row]].tolist() for row in rows],
    )
