"""Decode of the default model beside transformers, in one process and in turn.

    python docs/decode_against_transformers.py [ROUNDS]

Each round times every system once: 48 greedy tokens after the same 37-token prompt, the prompt left out.
What is printed are medians over the rounds, and the ratio to transformers' faster dtype round by round.
Needs the test extra: torch and transformers.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import jax_llama3 as jl
from convert.fetch import fetch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from reference import transformers_model

NEW = 48


def transformers_rate(model: transformers.LlamaForCausalLM, ids: list[int]) -> float:
    with torch.inference_mode():
        output = model(torch.tensor([ids]), use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(NEW):
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        return NEW / (time.perf_counter() - start)


def generate_rate(model: jl.Model, ids: list[int]) -> float:
    return jl.generate(model, ids, max_new_tokens=NEW, stop=()).generation_tps


def decode_rate(model: jl.Model, ids: list[int]) -> float:
    """A Python loop over `decode`, one token per call."""
    cache = jl.init_cache(model.config, 1, 128, model.params.embedding.dtype)
    logits, cache = jl.prefill(
        model.params, np.array([ids]), np.array([len(ids)]), cache, model.config
    )
    token = jnp.argmax(logits, axis=-1)
    start = time.perf_counter()
    for _ in range(NEW):
        logits, cache = jl.decode(model.params, token, cache, model.config)
        token = jnp.argmax(logits, axis=-1)
    token.block_until_ready()
    return NEW / (time.perf_counter() - start)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    folder = fetch("smollm2-135m-instruct")
    wide, half = jl.load(folder), jl.load(folder, dtype="bfloat16")
    theirs = transformers_model(wide.params, wide.config)
    theirs_half = transformers_model(wide.params, wide.config).to(torch.bfloat16)
    ids = jl.apply_chat_template(
        wide, [{"role": "user", "content": "What is the capital of France?"}]
    )
    systems: dict[str, Callable[[], float]] = {
        "transformers float32": lambda: transformers_rate(theirs, ids),
        "transformers bfloat16": lambda: transformers_rate(theirs_half, ids),
        "generate float32": lambda: generate_rate(wide, ids),
        "generate bfloat16": lambda: generate_rate(half, ids),
        "decode float32": lambda: decode_rate(wide, ids),
        "decode bfloat16": lambda: decode_rate(half, ids),
    }
    for run in systems.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, run in systems.items():
            rates[name].append(run())
    best = [max(pair) for pair in zip(*list(rates.values())[:2], strict=True)]
    versions = (
        f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(f"{versions}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    for name, values in rates.items():
        ratio = statistics.median(ours / peer for ours, peer in zip(values, best, strict=True))
        print(f"{name:<22} {statistics.median(values):6.1f} tokens/s  {ratio:5.2f}")


if __name__ == "__main__":
    main()
