"""`jax-llama3 generate`: its options, and what it prints."""

import argparse
import json
import sys

from ..api import prepare, stream
from ..decoding.sampling import Sampler
from ..runtime.compilation import keep_compilations
from ..runtime.home import default_folder
from ..startup import starting
from ..text.completion import Completion, rate
from ..text.tokenizer import LLAMA3
from .default_model import model_folder
from .prompts import add_text_options, as_prompt, note_format, read_texts


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
    command.add_argument(
        "--chat-format",
        choices=(LLAMA3,),
        help="of an Instruct model that brings no chat template",
    )
    command.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="ends the answer; repeatable"
    )
    command.add_argument(
        "--ignore-eos", action="store_true", help="go on after the model's own stop tokens"
    )
    command.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    sampler = Sampler(
        temperature=options.temp, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p
    )
    texts = read_texts(options)
    keep_compilations(default_folder("compiled"))
    with starting(model_folder(options.model), dtype=options.dtype) as (abstract, finish):
        prepared = prepare(
            abstract,
            [as_prompt(abstract, text, options) for text in texts],
            max_new_tokens=options.max_new_tokens,
            sampler=sampler,
            seed=options.seed,
            stop=options.stop,
            ignore_eos=options.ignore_eos,
        )
        model = finish(prepared.request)
    note_format(model, options)
    prompts = prepared.request.prompts
    live = len(prompts) == 1 and not options.json
    done: dict[int, Completion] = {}
    for piece in stream(model, prepared):
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
    seconds = max(completion.generation_seconds for completion in completions)
    print(f"prompt: {prompt} tokens, {completions[0].prompt_tps:.1f} tokens/s", file=sys.stderr)
    print(f"generation: {new} tokens, {rate(new, seconds):.1f} tokens/s", file=sys.stderr)
    print(f"peak memory: {completions[0].peak_memory:.2f} GB", file=sys.stderr)
