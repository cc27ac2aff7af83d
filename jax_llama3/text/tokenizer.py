"""Text to token ids and back, with what a model's files say about the use of its vocabulary."""

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from .tokenizer_json import JSON
from .vocabulary import MODEL, JsonVocabulary, MetaVocabulary, Vocabulary

GENERATION, TEMPLATE = "generation.json", "chat_template.jinja"
LLAMA3 = "llama3"  # the chat format that a model without a template may be said to have
_SETTINGS = {"bos_id", "eos_id", "add_bos", "stop_ids"}  # what generation.json always holds
# What it may hold: variables of templates, templates beside the default one, and a format without one.
_EXTRAS = {"special_tokens": dict, "chat_templates": dict, "chat_format": str}


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and what the model's files say about using it; `files` are those files."""

    vocabulary: Vocabulary
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    stop_ids: tuple[int, ...]
    chat_template: str | None
    files: dict[str, bytes] = field(repr=False)
    special_tokens: dict[str, str] | None = None  # texts by their names in templates; None: unknown
    chat_templates: dict[str, str] = field(default_factory=dict)  # those beside `chat_template`
    chat_format: str | None = None  # LLAMA3 if the model speaks it without a template

    def encode(self, text: str, *, bos: bool = False, start: bool = True) -> list[int]:
        """Ids of plain text; with `bos`, after the beginning-of-text token if the model wants one.

        `start` is False for text that continues other text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode: {error}") from None
        prefix = [self.bos_id] if bos and self.add_bos and self.bos_id is not None else []
        return prefix + self.vocabulary.encode(text, start=start)

    def decode(
        self, tokens: Iterable[int], *, skip_special: bool = False, start: bool = True
    ) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD.

        `start` is False for ids that continue others.
        """
        stream = TextStream(self, skip_special=skip_special, start=start)
        return stream.push(tokens) + stream.close()

    @cached_property
    def special_names(self) -> dict[int, str]:
        return {token: name for name, token in self.vocabulary.special.items()}


class TextStream:
    """Text of ids that arrive piece by piece; a character is held back until it is whole.

    SentencePiece puts a space before a text; it is taken away where the text begins, and kept in ids
    that continue others (`start` False).
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, start: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_names if skip_special else {}
        self._prefix = tokenizer.vocabulary.prefix if start else b""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The text that these ids complete."""
        vocabulary = self._tokenizer.vocabulary
        pieces = [vocabulary.token_bytes(token) for token in tokens if token not in self._skip]
        data = b"".join(pieces)
        if data:
            data, self._prefix = data.removeprefix(self._prefix), b""
        return self._decoder.decode(data)

    def close(self) -> str:
        """What is left: U+FFFD if the ids ended inside a character."""
        return self._decoder.decode(b"", final=True)


def tokenizer_from_files(files: dict[str, bytes], rows: int | None = None) -> Tokenizer | None:
    """The tokenizer whose files these are (None without any); damaged ones raise ValueError.

    No text makes an id from `rows` on: the embedding's height, if it is known.
    """
    if MODEL not in files and JSON not in files:
        return None
    kept = {name: files[name] for name in (MODEL, JSON, GENERATION, TEMPLATE) if name in files}
    if JSON in files:
        vocabulary: Vocabulary = JsonVocabulary(files[JSON], rows)
    else:
        vocabulary = MetaVocabulary(files[MODEL])
    settings = _read_generation(files.get(GENERATION), vocabulary)
    template = files.get(TEMPLATE)
    return Tokenizer(
        vocabulary=vocabulary,
        chat_template=None if template is None else template.decode(),
        files=kept,
        **settings,
    )


def _read_generation(data: bytes | None, vocabulary: Vocabulary) -> dict:
    """The fields of generation.json, checked against the vocabulary; Meta's own ids without one."""
    try:
        if data is None:
            special = vocabulary.special
            stops = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
            bos = special["<|begin_of_text|>"]
            values = {
                "bos_id": bos,
                "eos_id": special["<|end_of_text|>"],
                "add_bos": True,
                "stop_ids": [special[name] for name in stops],
            }
        else:
            values = json.loads(data)
        ids = [*values["stop_ids"], values["bos_id"], values["eos_id"]]
        for token in ids:
            if token is not None and not 0 <= token < vocabulary.size:
                raise ValueError(f"token id {token} is outside the {vocabulary.size} known ones")
        values["stop_ids"] = tuple(values["stop_ids"])
        if set(values) - {*_EXTRAS} != _SETTINGS:
            raise ValueError(f"unknown keys among {', '.join(values)}")
        _check_extras({name: values[name] for name in _EXTRAS if name in values})
        return values
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{GENERATION}: {error}") from None


def _check_extras(extras: dict) -> None:
    for name, value in extras.items():
        texts = [*value, *value.values()] if isinstance(value, dict) else [value]
        if not isinstance(value, _EXTRAS[name]) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{name} holds {value!r} instead of texts")
    if extras.get("chat_format", LLAMA3) != LLAMA3:
        raise ValueError(f"chat_format {extras['chat_format']!r} is not supported, only {LLAMA3!r}")
