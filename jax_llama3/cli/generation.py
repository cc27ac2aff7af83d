"""`jax-llama3 generate`: its options, and what it prints."""

import argparse
import json
import sys

from ..api import stream_batch
from ..decoding.sampling import Sampler
from ..runtime.compilation import keep_compilations
from ..runtime.home import default_folder
from ..startup import load_for
from ..text.completion import Completion
from .default_model import model_folder
from .prompts import add_text_options, prompt_ids, read_texts


def add_generate(command: argparse.ArgumentParser) -> None:
    """Add the options and what runs with them."""
    add_text_options(command)
    command.add_argument(
        "-m",
        "--max-new-tokens",
        metavar="N",
        type=int,
        help="default: 256, or what the context holds",
    )
    defaults = Sampler()
    command.add_argument("--temp", type=float, default=defaults.temperature, help="0: greedy")
    command.add_argument("--top-k", type=int, default=defaults.top_k, help="0: off")
    command.add_argument("--top-p", type=float, default=defaults.top_p, help="1: off")
    command.add_argument("--min-p", type=float, default=defaults.min_p, help="0: off")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--system-prompt", metavar="TEXT")
    command.add_argument(
        "--ignore-chat-template", action="store_true", help="continue the prompt as raw text"
    )
    command.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    sampler = Sampler(
        temperature=options.temp, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p
    )
    texts = read_texts(options)
    keep_compilations(default_folder("compiled"))
    model, prompts = load_for(
        model_folder(options.model),
        lambda model: [prompt_ids(model, text, row, options) for row, text in enumerate(texts)],
        dtype=options.dtype,
        max_new_tokens=options.max_new_tokens,
        sampler=sampler,
    )
    pieces = stream_batch(
        model, prompts, max_new_tokens=options.max_new_tokens, sampler=sampler, seed=options.seed
    )
    live = len(prompts) == 1 and not options.json
    done: dict[int, Completion] = {}
    for piece in pieces:
        if live:
            print(piece.text, end="", flush=True)
        if piece.completion is not None:
            done[piece.row] = piece.completion
    if live:
        print()
    for row, prompt in enumerate(prompts):
        if options.json:
            print(json.dumps(_completion_json(prompt, done[row]), ensure_ascii=False))
        elif not live:
            print(done[row].text)
    _print_statistics(list(done.values()))


def _completion_json(prompt: list[int], completion: Completion) -> dict:
    values = completion._asdict()
    answer = {key: values.pop(key) for key in ("text", "tokens", "logprobs", "finish_reason")}
    return {**answer, "prompt_tokens": prompt, "stats": values}


def _print_statistics(completions: list[Completion]) -> None:
    """The batch's rates on stderr: all rows' tokens over the time of the slowest."""
    prompt = sum(completion.prompt_tokens for completion in completions)
    new = sum(completion.generation_tokens for completion in completions)
    seconds = max((_seconds(completion) for completion in completions), default=0.0)
    rate = new / seconds if seconds else 0.0
    print(f"prompt: {prompt} tokens, {completions[0].prompt_tps:.1f} tokens/s", file=sys.stderr)
    print(f"generation: {new} tokens, {rate:.1f} tokens/s", file=sys.stderr)
    print(f"peak memory: {completions[0].peak_memory:.2f} GB", file=sys.stderr)


def _seconds(completion: Completion) -> float:
    tokens, rate = completion.generation_tokens, completion.generation_tps
    return tokens / rate if rate else 0.0
