"""`jax-llama3 bench`: its options, and what it runs."""

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from ..bench.baselines import baseline
from ..bench.first_token import time_first_token
from ..bench.limits import peak_flops
from ..bench.presets import preset, preset_names
from ..bench.report import FORMATS, environment, plot, report
from ..bench.timing import Baseline, Measurement, Test, bench, check_tests
from ..checkpoint.format import Model, read_config
from ..checkpoint.loading import load
from ..checkpoint.manifest import read_manifest
from ..checkpoint.saving import save
from ..decoding.generation import cache_capacity
from ..model.config import Config
from ..model.params import Params, count_params, init_params
from ..model.quantization import activation_dtype, is_quantized, quantize
from ..runtime.memory import move_to_huge_pages
from ..runtime.picture import check_picture
from ..runtime.progress import progress
from .default_model import model_folder

_DTYPES = ("float32", "bfloat16", "float16")


def add_bench(command: argparse.ArgumentParser) -> None:
    """Add the options and what runs with them."""
    shape = command.add_mutually_exclusive_group()
    shape.add_argument("--model", metavar="DIR", type=Path, help="default: the fetched model")
    shape.add_argument(
        "--preset", metavar="NAME", help=f"random weights: {', '.join(preset_names())}"
    )
    for flag, name, default, text in (
        ("-p", "--prompt-tokens", [512], "prompt tokens to read; 0: no such test"),
        ("-n", "--new-tokens", [128], "tokens to decode; 0: no such test"),
        ("-d", "--depth", [0], "tokens in the cache before each test"),
        ("-b", "--batch", [1], "rows"),
    ):
        words = f"{text} (default: {default[0]})"
        command.add_argument(
            flag, name, type=_numbers, default=default, metavar="N,...", help=words
        )
    command.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="default: 5")
    command.add_argument(
        "--dtype", choices=_DTYPES, help="default: the model's; a preset's bfloat16"
    )
    command.add_argument("--quantize", choices=("int8",), help="quantise the weights first")
    command.add_argument(
        "--first-token", action="store_true", help="time a new process up to its first token too"
    )
    command.add_argument("-o", "--output", choices=FORMATS, default="md", help="default: md")
    command.add_argument("--plot", metavar="FILE.png", type=Path, help="roofline and depths")
    command.add_argument(
        "--against",
        metavar="NAME,...",
        default="",
        help="time these in turn: transformers, llama.cpp",
    )
    command.set_defaults(run=_run)


def _numbers(text: str) -> list[int]:
    numbers = [int(part) if part.isdecimal() else -1 for part in text.split(",")]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 128,512")
    return numbers


def _run(options: argparse.Namespace) -> None:
    if options.plot is not None:
        check_picture(options.plot)
    folder = None if options.preset else model_folder(options.model)
    config = preset(options.preset) if folder is None else _config(folder)
    tests = _tests(options)
    if tests or options.plot is not None or not options.first_token:
        check_tests(tests, config, options.repetitions)
    params = _params(config, folder, options)
    with ExitStack() as stack:
        baselines = _start_baselines(options, config, params, tests, stack)
        timed = partial(bench, repetitions=options.repetitions, baselines=baselines)
        rows = timed(params, config, tests) if tests else []
    model = Model(config, params, None)
    first = [_first_token(model, folder, options)] if options.first_token else []
    facts = environment(options.preset or str(folder))
    print(report([*rows, *first], facts, options.output))
    if options.plot is not None:
        title = f"{facts['model']}, {rows[0].dtype}, {facts['device']}, jax {facts['jax']}"
        plot(rows, peak_flops(activation_dtype(params)), title, options.plot)


def _first_token(model: Model, folder: Path | None, options: argparse.Namespace) -> Measurement:
    dtype = jnp.dtype(activation_dtype(model.params)).name
    if folder is not None and not options.quantize:
        return time_first_token(folder, dtype, options.repetitions)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "model"
        save(made, model)
        return time_first_token(made, dtype, options.repetitions)


def _config(folder: Path) -> Config:
    read_manifest(folder)
    return read_config(folder)


def _tests(options: argparse.Namespace) -> list[Test]:
    """Every prompt length, then every number of new tokens, at every depth and batch."""
    places = list(itertools.product(options.batch, options.depth))
    asked = [("pp", options.prompt_tokens), ("tg", options.new_tokens)]
    return [
        Test(kind, tokens, depth, batch)
        for kind, numbers in asked
        for batch, depth in places
        for tokens in numbers
        if tokens
    ]


def _params(config: Config, folder: Path | None, options: argparse.Namespace) -> Params:
    if folder is None:
        params = _random_params(config, options)
    else:
        params = load(folder, dtype=options.dtype).params
    quantized = options.quantize and not is_quantized(params)
    if quantized:
        params = jax.block_until_ready(jax.jit(quantize)(params))
    if jax.default_backend() != "cpu" or not (quantized or folder is None):
        return params
    leaves, tree = jax.tree.flatten(params)
    del params
    # A model's file lies in huge pages too, so the speed is that of a loaded model.
    with progress(sum(leaf.nbytes for leaf in leaves), "placing weights") as bar:
        move_to_huge_pages(leaves, bar.update)
    return jax.tree.unflatten(tree, leaves)


def _random_params(config: Config, options: argparse.Namespace) -> Params:
    dtype = jnp.dtype(options.dtype or "bfloat16")
    needed = count_params(config) * dtype.itemsize
    if jax.default_backend() == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > 0.9 * memory:
            raise ValueError(
                f"{options.preset} in {dtype} needs {needed / 1e9:.1f} GB and this machine has "
                f"{memory / 1e9:.1f} GB; choose a smaller preset or dtype"
            )
    return jax.block_until_ready(init_params(jax.random.key(0), config, dtype))


def _start_baselines(
    options: argparse.Namespace,
    config: Config,
    params: Params,
    tests: list[Test],
    stack: ExitStack,
) -> list[Baseline]:
    """Start the systems that were named, each in a process of its own."""
    capacity = cache_capacity(max((test.depth + test.tokens for test in tests), default=1))
    baselines: list[Baseline] = []
    if not tests:  # a first token alone is timed
        return baselines
    for name in filter(None, options.against.split(",")):
        dtype = jnp.dtype(activation_dtype(params)).name
        system, run = stack.enter_context(baseline(name, config, dtype, capacity))
        baselines.append((system, partial(_run_baseline, run)))
    return baselines


def _run_baseline(run: Callable[..., float], test: Test) -> float:
    return run(test=test.kind, tokens=test.tokens, depth=test.depth, batch=test.batch)
