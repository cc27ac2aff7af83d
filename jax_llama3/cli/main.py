"""The command line: python -m jax_llama3 generate|score|bench|info."""

import argparse
import json
import math
import sys
from pathlib import Path

from ..api import apply_chat_template, encode_prompt, score, stream_batch
from ..checkpoint.format import Model
from ..checkpoint.loading import load
from ..checkpoint.manifest import read_manifest
from ..decoding.sampling import Sampler
from ..runtime.compilation import keep_compilations
from ..runtime.home import default_folder
from ..runtime.memory import keep_freed_memory
from ..startup import load_for
from ..text.chat import has_chat_format
from ..text.completion import Completion
from .benchmark import add_bench
from .errors import OneLineParser, run_command
from .info import describe

DEFAULT_MODEL = "smollm2-135m-instruct"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    keep_freed_memory()
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="jax-llama3", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands.add_parser("generate", help="continue prompts"))
    _add_score(commands.add_parser("score", help="log-probabilities of texts"))
    command = commands.add_parser("bench", help="prefill and decode against the machine's limits")
    add_bench(command, _model_folder)
    command = commands.add_parser("info", help="what a converted model is and needs")
    command.add_argument("folder", metavar="DIR", nargs="?", type=Path)
    command.set_defaults(run=_info)
    return parser


def _add_generate(command: argparse.ArgumentParser) -> None:
    _add_text_options(command)
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


def _add_score(command: argparse.ArgumentParser) -> None:
    _add_text_options(command)
    command.set_defaults(run=_score)


def _add_text_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="DIR", type=Path, help=f"default: {DEFAULT_MODEL}")
    command.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")
    command.add_argument(
        "-p",
        "--prompt",
        metavar="TEXT",
        action="append",
        required=True,
        help="'-' reads stdin; repeat it for a batch",
    )
    command.add_argument("--json", action="store_true", help="one JSON object per prompt")


def _model_folder(folder: Path | None) -> Path:
    """The folder given, or the default model's if it has been fetched."""
    if folder is not None:
        return folder
    folder = default_folder(DEFAULT_MODEL)
    if not folder.exists():
        raise FileNotFoundError(
            f"the default model is not at {folder}; run: python -m convert fetch {DEFAULT_MODEL}"
        )
    return folder


def _texts(options: argparse.Namespace) -> list[str]:
    stdin = _read_stdin() if "-" in options.prompt else ""
    texts = [stdin if text == "-" else text for text in options.prompt]
    for index, text in enumerate(texts):
        if not text:
            raise ValueError(f"prompt {index} is empty; give it some text")
    return texts


def _read_stdin() -> str:
    if sys.stdin is None:
        raise ValueError("-p - was given, but standard input is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not valid text: {error}") from None


def _generate(options: argparse.Namespace) -> None:
    sampler = Sampler(
        temperature=options.temp, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p
    )
    texts = _texts(options)
    keep_compilations(default_folder("compiled"))
    model, prompts = load_for(
        _model_folder(options.model),
        lambda model: [_prompt_ids(model, text, row, options) for row, text in enumerate(texts)],
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


def _prompt_ids(model: Model, text: str, index: int, options: argparse.Namespace) -> list[int]:
    tokenizer = model.tokenizer
    raw = options.ignore_chat_template or tokenizer is None or not has_chat_format(tokenizer)
    if raw and options.system_prompt is not None:
        raise ValueError("--system-prompt needs a model with a chat template, and its use")
    if raw:
        return encode_prompt(tokenizer, text, index)
    messages = [{"role": "user", "content": text}]
    if options.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": options.system_prompt})
    return apply_chat_template(model, messages)


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


def _score(options: argparse.Namespace) -> None:
    texts = _texts(options)
    keep_compilations(default_folder("compiled"))
    model = load(_model_folder(options.model), dtype=options.dtype)
    for text in texts:
        scored = score(model, text)
        known = [value for value in scored.logprobs if value is not None]
        perplexity = math.exp(-sum(known) / len(known)) if known else None
        if options.json:
            print(json.dumps({**scored._asdict(), "perplexity": perplexity}))
        else:
            shown = "none, a single token" if perplexity is None else f"{perplexity:.4f}"
            print(f"{len(scored.tokens)} tokens, perplexity {shown}")


def _info(options: argparse.Namespace) -> None:
    folder = _model_folder(options.folder)
    print(describe(folder, read_manifest(folder)))
