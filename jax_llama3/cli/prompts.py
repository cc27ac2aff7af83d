"""The texts that a command is given, and the token ids they become."""

import argparse
import sys
from pathlib import Path

from ..api import Prompt, apply_chat_template, check_text
from ..checkpoint.format import Model
from ..text.chat import has_chat_format, knows_llama3_format
from .default_model import DEFAULT_MODEL


def add_text_options(command: argparse.ArgumentParser) -> None:
    """Add the options of every command that reads texts: which model, which texts, which output."""
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


def read_texts(options: argparse.Namespace) -> list[str]:
    """The texts of `-p`, with stdin in place of each '-'; an empty one raises ValueError."""
    stdin = _read_stdin() if "-" in options.prompt else ""
    texts = [stdin if text == "-" else text for text in options.prompt]
    for index, text in enumerate(texts):
        check_text(text, index)
    return texts


def _read_stdin() -> str:
    if sys.stdin is None:
        raise ValueError("-p - was given, but standard input is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not valid text: {error}") from None


def as_prompt(model: Model, text: str, options: argparse.Namespace) -> Prompt:
    """The ids of a conversation where the model has a chat format, otherwise the raw text itself."""
    if is_raw(model, options):
        if options.system_prompt is not None:
            raise ValueError(
                "--system-prompt needs a model with a chat template, or --chat-format llama3"
            )
        return text
    messages = [{"role": "user", "content": text}]
    if options.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": options.system_prompt})
    return apply_chat_template(model, messages, chat_format=options.chat_format)


def is_raw(model: Model, options: argparse.Namespace) -> bool:
    """Whether prompts are continued as raw text."""
    if options.ignore_chat_template and options.chat_format:
        raise ValueError("--chat-format and --ignore-chat-template exclude each other; give one")
    if options.ignore_chat_template or options.chat_format:
        return options.ignore_chat_template
    return model.tokenizer is None or not has_chat_format(model.tokenizer)


def note_format(model: Model, options: argparse.Namespace) -> None:
    """One line on stderr, where it is not the model's own template that prompts are written with."""
    tokenizer = model.tokenizer
    if tokenizer is None or options.ignore_chat_template:
        return
    if is_raw(model, options):
        told = knows_llama3_format(tokenizer)
        remedy = "; for an Instruct model give --chat-format llama3" if told else ""
        print(f"note: no chat template, so prompts are raw text{remedy}", file=sys.stderr)
    elif options.chat_format or (tokenizer.chat_format and tokenizer.chat_template is None):
        print("note: prompts are in the chat format llama3", file=sys.stderr)
