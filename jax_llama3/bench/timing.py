"""Prefill and decode, timed against the machine's limits."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..decoding.generation import PREFILL_TOKENS, cache_capacity
from ..decoding.loop import STEPS, Rules, State, decode_many, padded_stop_ids
from ..decoding.programs import bucket, choose_ops, lower_with, read_tokens
from ..model.cache import init_cache
from ..model.config import Config
from ..model.params import Params, abstract_params
from ..model.quantization import activation_dtype, is_quantized
from ..model.taps import no_tap
from ..runtime.compilation import Compilations, count_compilations
from ..runtime.progress import progress
from .cost import forward_flops, weight_bytes
from .limits import bandwidth_probe

_WARM_UPS = 3  # on a GPU the second call captures a graph


class Test(NamedTuple):
    """One thing to time: "pp" reads `tokens` prompt tokens, "tg" decodes as many, after `depth`."""

    kind: str
    tokens: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        """As llama-bench writes it: pp512, tg128 @ d4096."""
        return f"{self.kind}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")


class Measurement(NamedTuple):
    """What was measured of one test by one system; rates count the tokens of all rows of the batch."""

    system: str
    test: str
    batch: int
    dtype: str
    avg_ts: float  # tokens per second: mean, standard deviation, every sample
    stddev_ts: float
    samples_ts: list[float]
    gb_s: float  # the weights read once per forward pass, 1e9 bytes per second
    bandwidth_gb_s: float  # what the machine can read, measured between the samples
    bandwidth_fraction: float
    tflop_s: float
    compile_seconds: float | None = None
    temp_bytes: int | None = None  # XLA's own figure for one call
    recompilations: int | None = None  # after the warm-ups; must be 0
    ratio: float | None = None  # our rate over this one: median over the rounds, and extremes
    ratio_min: float | None = None
    ratio_max: float | None = None


Baseline = tuple[str, Callable[[Test], float]]  # a system's name, and what times one test with it


def bench(
    params: Params,
    config: Config,
    tests: Sequence[Test],
    *,
    repetitions: int,
    baselines: Sequence[Baseline] = (),
) -> list[Measurement]:
    """Time every test after three warm-ups, in turn with the baselines and a probe of the bandwidth.

    Speed does not depend on the numbers, so prompts and what a depth holds are made up. Tests that the
    model cannot run raise ValueError.
    """
    check_tests(tests, config, repetitions)
    probe = bandwidth_probe()
    measurements = []
    rounds = len(tests) * (_WARM_UPS + repetitions) * (1 + len(baselines))
    with progress(rounds, "timing", "run") as bar:
        for test in tests:
            measurements += _bench_test(params, config, test, repetitions, baselines, probe, bar)
    return measurements


def check_tests(tests: Sequence[Test], config: Config, repetitions: int) -> None:
    """Refuse tests that cannot be run, before any is timed."""
    if repetitions < 1:
        raise ValueError(f"repetitions must be at least 1, not {repetitions}")
    if not tests:
        raise ValueError("there is nothing to time; ask for prompt tokens (-p) or new ones (-n)")
    for test in tests:
        if test.depth < 0 or test.tokens < 1 or test.batch < 1:
            raise ValueError(
                f"{test.name} in a batch of {test.batch} cannot be run; use more than 0"
            )
        if test.depth + test.tokens > config.max_seq_len:
            raise ValueError(f"{test.name} exceeds the model's context of {config.max_seq_len}")


def _bench_test(
    params: Params,
    config: Config,
    test: Test,
    repetitions: int,
    baselines: Sequence[Baseline],
    probe: Callable[[], float],
    bar: Any,
) -> list[Measurement]:
    setup = _prefill_runner if test.kind == "pp" else _decode_runner
    with count_compilations() as compiled:
        run, temp_bytes = setup(params, config, test)
        for _ in range(_WARM_UPS):
            _seconds(run)
            bar.update()
    for _ in range(_WARM_UPS):
        for _, baseline in baselines:
            baseline(test)
            bar.update()
    ours, bandwidths = [], []
    theirs: list[list[float]] = [[] for _ in baselines]
    recompiled = Compilations()
    for _ in range(repetitions):
        bandwidths.append(probe() / 1e9)
        with count_compilations() as compiled_now:
            ours.append(_seconds(run))
        recompiled.count += compiled_now.count
        bar.update()
        for seconds, (_, baseline) in zip(theirs, baselines, strict=True):
            seconds.append(baseline(test))
            bar.update()
    measured = partial(_measurement, config, test, statistics.median(bandwidths))
    mine = measured("jax_llama3", ours, params)._replace(
        compile_seconds=compiled.seconds, temp_bytes=temp_bytes, recompilations=recompiled.count
    )
    measurements = [mine]
    plain = abstract_params(config, activation_dtype(params))  # a baseline does not know our int8
    for (name, _), seconds in zip(baselines, theirs, strict=True):
        ratios = [their / our for our, their in zip(ours, seconds, strict=True)]
        measurements.append(
            measured(name, seconds, plain)._replace(
                ratio=statistics.median(ratios), ratio_min=min(ratios), ratio_max=max(ratios)
            )
        )
    return measurements


def _measurement(
    config: Config,
    test: Test,
    bandwidth_gb_s: float,
    system: str,
    seconds: list[float],
    params: Params,
) -> Measurement:
    if test.kind == "pp":
        spans = [(start, min(PREFILL_TOKENS, test.tokens - start)) for start in _starts(test)]
    else:
        spans = [(step, 1) for step in range(test.tokens)]
    flops = sum(forward_flops(config, new, test.depth + start, 1) for start, new in spans)
    rates = [test.batch * test.tokens / each for each in seconds]
    typical = statistics.median(seconds)
    gb_s = len(spans) * weight_bytes(params) / typical / 1e9
    return Measurement(
        system=system,
        test=test.name,
        batch=test.batch,
        dtype=_dtype_name(params),
        avg_ts=statistics.mean(rates),
        stddev_ts=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        samples_ts=rates,
        gb_s=gb_s,
        bandwidth_gb_s=bandwidth_gb_s,
        bandwidth_fraction=gb_s / bandwidth_gb_s,
        tflop_s=test.batch * flops / typical / 1e12,
    )


def _dtype_name(params: Params) -> str:
    dtype = jnp.dtype(activation_dtype(params)).name
    return f"int8, {dtype}" if is_quantized(params) else dtype


def _starts(test: Test) -> range:
    return range(0, test.tokens, PREFILL_TOKENS)


def _prefill_runner(
    params: Params, config: Config, test: Test
) -> tuple[Callable[[], Any], int | None]:
    """A function that reads the prompt into a cache filled up to the depth, and its temporaries."""
    capacity = cache_capacity(test.depth + bucket(test.tokens))
    cache = init_cache(config, test.batch, capacity, activation_dtype(params))
    depth = jnp.full(test.batch, test.depth, jnp.int32)

    def read(start: int, cache: Any, **options: Any) -> Any:
        tokens, lengths = _part(test, start)
        ops = choose_ops(params, *tokens.shape)
        return read_tokens(params, tokens, lengths, cache, config, no_tap, ops, **options)

    def run() -> Any:
        nonlocal cache
        cache, logits = cache._replace(lengths=depth + 0), None  # a new array: the last was donated
        for start in _starts(test):
            logits, cache = read(start, cache)
        return logits

    programs: list[jax.stages.Lowered] = []
    read(0, cache, run=lower_with(programs.append))
    return run, _temp_bytes(programs)


def _part(test: Test, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens from `start` on, padded as `generate` pads them, and how many there are."""
    count = min(PREFILL_TOKENS, test.tokens - start)
    tokens = np.ones((test.batch, bucket(count)), np.int32)
    return tokens, np.full(test.batch, count, np.int32)


def _decode_runner(
    params: Params, config: Config, test: Test
) -> tuple[Callable[[], Any], int | None]:
    """A function that decodes with the loop of `generate`, from the depth on, and its temporaries."""
    capacity = cache_capacity(test.depth + test.tokens)
    state = State(
        tokens=jnp.ones(test.batch, jnp.int32),
        cache=init_cache(config, test.batch, capacity, activation_dtype(params)),
        active=jnp.ones(test.batch, bool),
        seen=jnp.zeros((test.batch, 0), bool),
        step=jnp.zeros((), jnp.int32),
    )
    rules = Rules(None, padded_stop_ids(()), {})
    depth = jnp.full(test.batch, test.depth, jnp.int32)
    ops = choose_ops(params, test.batch, 1)

    def run() -> Any:
        nonlocal state
        state, logprobs = state._replace(cache=state.cache._replace(lengths=depth + 0)), None
        for start in range(0, test.tokens, STEPS):
            limit = min(STEPS, test.tokens - start)
            state, _, logprobs = decode_many(params, state, rules, limit, config, ops)
        return logprobs

    program = decode_many.lower(params, state, rules, STEPS, config, ops)
    return run, _temp_bytes([program])


def _temp_bytes(programs: list[jax.stages.Lowered]) -> int | None:
    """The most that any of these programs, which run one after the other, needs at a time."""
    analyses = [program.compile().memory_analysis() for program in programs]
    sizes = [each.temp_size_in_bytes for each in analyses if each is not None]
    return max(sizes) if len(sizes) == len(programs) else None


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
