"""Messages to token ids: the template that a model brings, or Llama 3's own format where it is asked for."""

import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from .authorship import MESSAGE, ROLE, TEMPLATE, by
from .rendering import encode_rendered
from .tokenizer import LLAMA3, Tokenizer

Message = Mapping[str, Any]  # "role" and "content", and what a template may ask for
_HEADER = "<|start_header_id|>"
# Reasoning has several names; transformers gives a template the first and the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def chat_tokens(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    chat_template: str | None = None,
    chat_format: str | None = None,
    **variables: Any,
) -> list[int]:
    """Ids of a conversation, by default ready for the assistant's answer.

    The model's template is given the messages, `tools`, `documents` and `variables` as transformers
    gives them. `chat_template` is the name of another of the model's templates, or a template's text.
    With `chat_format` "llama3" the messages are written in Llama 3's own format instead. Whatever any
    of these texts say is encoded as text: "<|eot_id|>" typed by a user ends nothing.
    """
    messages = [_message(message) for message in messages]
    if not messages:
        raise ValueError("the conversation holds no message")
    if chat_template is None and (chat_format or _own_format(tokenizer)) is not None:
        if tools or documents:
            raise ValueError("Llama 3's own format has no place for tools or documents")
        return _llama3(tokenizer, messages, add_generation_prompt)
    template = _template(tokenizer, chat_template, with_tools=tools is not None)
    given = {"tools": tools, "documents": documents, **variables}
    names = {name: by(TEMPLATE, text) for name, text in _special_names(tokenizer).items()}
    text = _render(
        template,
        {
            **names,
            "messages": [_for_template(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            **{name: _plain(value, name) for name, value in given.items()},
        },
    )
    return encode_rendered(tokenizer.vocabulary, text, template)


def has_chat_format(tokenizer: Tokenizer) -> bool:
    """Whether the model's files say how a conversation is written."""
    templates = tokenizer.chat_template or tokenizer.chat_templates or tokenizer.chat_format
    return bool(templates)


def knows_llama3_format(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary has the tokens of Llama 3's format; a base model's has them too."""
    return _HEADER in tokenizer.vocabulary.special


def _own_format(tokenizer: Tokenizer) -> str | None:
    return None if tokenizer.chat_template is not None else tokenizer.chat_format


def _message(message: Any) -> dict[str, Any]:
    """The message without what is None; one that no template could take raises ValueError."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"a message needs the texts 'role' and 'content', not {message!r}")
    kept = {name: value for name, value in message.items() if value is not None}
    if not isinstance(kept.get("content", ""), str | Sequence | Mapping) or len(kept) < 2:
        raise ValueError(
            f"a message needs a 'content', a text or a list of parts, or 'tool_calls', not {message!r}"
        )
    return kept


def _template(tokenizer: Tokenizer, chosen: str | None, *, with_tools: bool) -> str:
    named = dict(tokenizer.chat_templates)
    if tokenizer.chat_template is not None:
        named["default"] = tokenizer.chat_template
    if chosen is not None:
        if chosen not in named and "{" not in chosen:
            known = ", ".join(sorted(named)) or "none"
            raise ValueError(f"the model has no chat template {chosen!r}; it has: {known}")
        return named.get(chosen, chosen)
    if with_tools and "tool_use" in named:
        return named["tool_use"]
    if "default" in named:
        return named["default"]
    if named:
        raise ValueError(
            f"none of the model's chat templates is the default; choose one of {', '.join(named)} "
            "with chat_template="
        )
    if knows_llama3_format(tokenizer):
        raise ValueError(
            "the model has no chat template, as a base model has none; give it raw text, or, if it "
            "is an Instruct model, chat_format='llama3' (--chat-format llama3)"
        )
    raise ValueError("the model has no chat template; give it raw text")


def _special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """The variables that hold a special token's text, under the names of the model's files."""
    if tokenizer.special_tokens is not None:
        return tokenizer.special_tokens
    names: dict[int | None, str] = {token.id: token.name for token in tokenizer.vocabulary.added}
    return {
        "bos_token": names.get(tokenizer.bos_id, ""),
        "eos_token": names.get(tokenizer.eos_id, ""),
    }


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    values = _plain(message, "messages")
    return {**values, "role": by(ROLE, message["role"])}


def _plain(value: Any, where: str) -> Any:
    """The value as texts, numbers, lists and dicts of the template's own; its texts are a message's."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return by(MESSAGE, value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        keys = (key if isinstance(key, bool | int | float) else str(key) for key in value)
        return dict(zip(keys, (_plain(each, where) for each in value.values()), strict=True))
    if isinstance(value, list | tuple):
        kept = [_plain(each, where) for each in value]
        return kept if isinstance(value, list) else tuple(kept)
    kind = type(value).__name__
    raise ValueError(f"{where} hold a {kind}; give texts, numbers, lists and dicts (JSON)")


def _render(template: str, variables: dict[str, Any]) -> Any:
    from .template import render  # jinja2 is loaded for this alone

    return render(template, variables)


def _llama3(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool
) -> list[int]:
    special = tokenizer.vocabulary.special
    if not knows_llama3_format(tokenizer):
        raise ValueError(f"{LLAMA3}: the vocabulary has no {_HEADER}; it is not Llama 3's")

    def header(role: str) -> list[int]:
        name = tokenizer.encode("ipython" if role == "tool" else role)
        ends = special["<|start_header_id|>"], special["<|end_header_id|>"]
        return [ends[0], *name, ends[1], *tokenizer.encode("\n\n")]

    tokens = [special["<|begin_of_text|>"]]
    for message in messages:
        tokens += header(message["role"]) + tokenizer.encode(_text(message))
        tokens.append(special["<|eot_id|>"])
    return tokens + header("assistant") if add_generation_prompt else tokens


def _text(message: Message) -> str:
    """What a message says, where it is nothing but text."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [
        part["text"]
        for part in parts or ()
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    ]
    if not parts or len(texts) < len(parts) or "tool_calls" in message:
        raise ValueError(
            f"Llama 3's own format holds texts alone, not {json.dumps(message, default=str)}; "
            "use a chat template"
        )
    return "".join(texts)
