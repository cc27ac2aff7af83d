"""Messages to token ids: Llama 3's own format, or the template that a model brings."""

import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

from .tokenizer import Tokenizer

Message = dict[str, Any]  # "role" and "content", and what a template may ask for


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation, ready for the assistant's answer.

    What the messages say is encoded as plain text: "<|eot_id|>" typed by a user ends nothing.
    """
    if not messages:
        raise ValueError("the conversation holds no message")
    for message in messages:
        known = isinstance(message, dict)
        if not known or not all(isinstance(message.get(f), str) for f in ("role", "content")):
            raise ValueError(f"a message needs the texts 'role' and 'content', not {message!r}")
    if tokenizer.chat_template is not None:
        return _from_template(tokenizer, tokenizer.chat_template, messages)
    if "<|start_header_id|>" in tokenizer.vocabulary.special:
        return _llama3(tokenizer, messages)
    raise ValueError("the model has no chat template; give it raw text")


def has_chat_format(tokenizer: Tokenizer) -> bool:
    """Whether `chat_tokens` knows how to write a conversation for this model."""
    special = tokenizer.vocabulary.special
    return tokenizer.chat_template is not None or "<|start_header_id|>" in special


def _llama3(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    special = tokenizer.vocabulary.special

    def header(role: str) -> list[int]:
        name = tokenizer.encode("ipython" if role == "tool" else role)
        ends = special["<|start_header_id|>"], special["<|end_header_id|>"]
        return [ends[0], *name, ends[1], *tokenizer.encode("\n\n")]

    tokens = [special["<|begin_of_text|>"]]
    for message in messages:
        tokens += header(message["role"]) + tokenizer.encode(message["content"])
        tokens.append(special["<|eot_id|>"])
    return tokens + header("assistant")


def _from_template(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> list[int]:
    special = tokenizer.vocabulary.special
    shield = _shield(special, messages)
    shielded = [{key: _replace(value, shield) for key, value in m.items()} for m in messages]
    text = _render(tokenizer, template, shielded)
    unshield = {mark: name for name, mark in shield.items()}
    names = sorted(special, key=len, reverse=True)
    pattern = "|".join(map(re.escape, names)) or r"(?!)"
    tokens: list[int] = []
    # Specials left in the text are the template's own; those of the messages are marks.
    for index, piece in enumerate(re.split(f"({pattern})", text)):
        if piece in special:
            tokens.append(special[piece])
        elif piece:
            start = index == 0 or tokenizer.vocabulary.prefix_after_special
            tokens += tokenizer.encode(_replace(piece, unshield), start=start)
    return tokens


def _shield(special: dict[str, int], messages: Sequence[Message]) -> dict[str, str]:
    """A private-use character for each special token named in the messages, used nowhere in them."""
    said = "".join(v for message in messages for v in message.values() if isinstance(v, str))
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in said)
    return {name: next(free) for name in special if name in said}


def _replace(text: Any, table: dict[str, str]) -> Any:
    if not isinstance(text, str):
        return text
    for old in sorted(table, key=len, reverse=True):
        text = text.replace(old, table[old])
    return text


def _render(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> str:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    names: dict[int | None, str] = {**tokenizer.special_names}
    try:
        return environment.from_string(template).render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=names.get(tokenizer.bos_id, ""),
            eos_token=names.get(tokenizer.eos_id, ""),
            raise_exception=raise_exception,
            strftime_now=lambda form: datetime.datetime.now().strftime(form),
        )
    except Exception as error:  # a template is a program and may raise anything
        raise ValueError(f"chat template: {' '.join(str(error).split())}") from None
