"""Vocabularies: token ids for plain text and bytes for ids, from Meta's file or a Hugging Face one."""

import binascii
import json
import re
import string
import threading
from collections.abc import Iterable
from typing import NamedTuple

from .tokenizer_json import (
    as_text,
    begins_every_part,
    build,
    decoder_steps,
    read_tokenizer_json,
    without_prefix,
)

MODEL = "tokenizer.model"

# Meta's split pattern.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The names of Meta's special tokens that have a use, by their place after the ordinary ids.
_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
    11: "<|image|>",
}
_N_SPECIAL = 256

_BASE64 = (string.ascii_letters + string.digits + "+/= ").encode()
_SPACES = bytes.maketrans(b"\t\n\r\v\f", b" " * 5)


class Added(NamedTuple):
    """A token beside the model's own pieces, and how the tokenizers library finds its name in a text."""

    name: str
    id: int
    special: bool = True
    lstrip: bool = False  # it takes the blanks before it too
    rstrip: bool = False
    single_word: bool = False


class Found(NamedTuple):
    """A token and the characters of the text that it stands for."""

    id: int
    start: int
    stop: int


class MetaVocabulary:
    """Llama 3's byte-pair ranks (tiktoken's format) and its 256 special tokens."""

    def __init__(self, data: bytes) -> None:
        import tiktoken

        ranks = _read_ranks(data)
        reserved = (place for place in range(_N_SPECIAL) if place not in _SPECIAL)
        names = _SPECIAL | {p: f"<|reserved_special_token_{i}|>" for i, p in enumerate(reserved)}
        self.special = {names[place]: len(ranks) + place for place in range(_N_SPECIAL)}
        self.added = [Added(name, token) for name, token in self.special.items()]
        self.size = len(ranks) + _N_SPECIAL
        self.n_ordinary = len(ranks)  # ids below it are those that text is made of
        self.prefix, self.prefix_after_special = b"", False
        self._encoding = tiktoken.Encoding(
            "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=self.special
        )

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Ids of plain text: a special token's name in it is text like any other."""
        # tiktoken's regex overflows its stack on very long runs without a word boundary.
        return [token for run in _runs(text) for token in self._encoding.encode_ordinary(run)]

    def encode_apart(self, text: str, names: Iterable[str], *, start: bool = True) -> list[int]:
        """`encode`; no added token is made of a text here."""
        return self.encode(text, start=start)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; alone they need not be UTF-8."""
        if token >= self.size:  # a row of the embedding that no token uses
            return b""
        return self._encoding.decode_single_token_bytes(token)


def _read_ranks(data: bytes) -> dict[bytes, int]:
    """The ranks of a file of pairs, each a token in base64 and its rank; no rank may be missing."""
    words = data.split()
    try:
        # All tokens are checked together, because a strict decoder of each takes half as long again.
        text = data.translate(_SPACES) + b" "
        if text.translate(None, _BASE64):
            raise ValueError("it has other characters")
        if text.count(b"=") != text.count(b"= ") + text.count(b"== "):
            raise ValueError("a token is padded elsewhere than at its end")
        if len(words) % 2:
            raise ValueError("a token or a rank is missing")
        if any(len(token) % 4 for token in words[::2]):
            raise ValueError("a token's length is no multiple of four")
        pairs = zip(map(binascii.a2b_base64, words[::2]), map(int, words[1::2]), strict=True)
        ranks = dict(pairs)
        if b"" in ranks:
            raise ValueError("a token is empty")
        if len(ranks) < len(words) // 2:
            raise ValueError("a token stands there twice")
    except ValueError as error:
        raise ValueError(f"{MODEL}: not a list of base64 tokens and ranks: {error}") from None
    if not ranks:
        raise ValueError(f"{MODEL}: it is empty")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{MODEL}: its ranks are not 0 .. {len(ranks) - 1}, each once")
    return ranks


def _runs(text: str) -> list[str]:
    """The text cut as Meta's tokenizer cuts it: every 400,000 characters, and every 25,000 of a run.

    A run is of characters that are all white space, or all not.
    """
    pieces = []
    for start in range(0, len(text), 400_000):
        window = text[start : start + 400_000]
        cuts = [0]
        for run in re.finditer(r"\s+|\S+", window):
            cuts += range(run.start() + 25_000, run.end(), 25_000)
        pieces += [window[a:b] for a, b in zip(cuts, [*cuts[1:], len(window)], strict=True)]
    return pieces


class JsonVocabulary:
    """A `tokenizer.json` of byte-pair merges: of bytes, or of SentencePiece's characters.

    In the second kind "\u2581" is a space and "<0x0A>" a byte. `rows` is the height of the embedding.
    """

    def __init__(self, data: bytes, rows: int | None = None) -> None:
        values = read_tokenizer_json(data)
        self._rows = rows
        self._tokenizer = build(values, data)
        steps = decoder_steps(values)
        self._bytes = byte_level() if "ByteLevel" in {step["type"] for step in steps} else None
        # A space that was put before a text is taken away again where the text begins.
        self.prefix = b" " if any(map(_strips_a_space, steps)) else b""
        self.prefix_after_special = begins_every_part(values)
        self.added = self._read_added()
        self._added = {each.id: each.name for each in self.added}
        self.special = {each.name: each.id for each in self.added if each.special}
        ids = self._tokenizer.get_vocab()
        self.size = max(ids.values()) + 1
        self.n_ordinary = max((i for i in ids.values() if i not in self._added), default=-1) + 1
        plain = as_text(values, self.special)
        self._whole = self._tokenizer if plain is values else build(plain)
        within = without_prefix(plain)
        self._within = self._whole if within is plain else build(within)
        self._lock = threading.Lock()  # while names of special tokens are tokens
        self._apart: dict[tuple[str, ...], JsonVocabulary] = {}

    def _read_added(self) -> list[Added]:
        """The tokens beside the merges'; one without a row in the embedding is as if special."""
        entries = self._tokenizer.get_added_tokens_decoder()
        rows = self._rows
        return [
            Added(
                each.content,
                token,
                each.special or (rows is not None and token >= rows),
                each.lstrip,
                each.rstrip,
                each.single_word,
            )
            for token, each in entries.items()
        ]

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Ids of plain text: a special token's name in it is text like any other.

        Text that continues other text (`start` False) gets no space before it.
        """
        tokenizer = self._whole if start else self._within
        with self._lock:
            return tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_added(self, text: str) -> list[Found]:
        """The tokens of a text in which every added token's name is that token, special or not."""
        with self._lock:
            self._tokenizer.encode_special_tokens = False
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
            finally:
                self._tokenizer.encode_special_tokens = True
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return [Found(token, *place) for token, place in places]

    def encode_apart(self, text: str, names: Iterable[str], *, start: bool = True) -> list[int]:
        """`encode` where these names of added tokens are text too, special or not."""
        others = tuple(sorted({*names} - {*self.special}))
        if not any(name in text for name in others):
            return self.encode(text, start=start)
        if others not in self._apart:
            self._apart = {others: self._without(others)}
        return self._apart[others].encode(text, start=start)

    def _without(self, names: tuple[str, ...]) -> "JsonVocabulary":
        """A copy to which these added tokens are special ones."""
        values = json.loads(self._tokenizer.to_str())
        for entry in values["added_tokens"]:
            entry["special"] |= entry["content"] in names
        return JsonVocabulary(json.dumps(values).encode(), self._rows)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; alone they need not be UTF-8."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # a row of the embedding that no token uses
            return b""
        if self._bytes is not None and set(piece) <= self._bytes.keys():
            return bytes(self._bytes[character] for character in piece)
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
            return bytes.fromhex(match[1])
        return piece.replace("\u2581", " ").encode()


def _strips_a_space(step: dict) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return step["type"] == "Strip" and step["content"] == " " and step["start"] > 0


def byte_level() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte, inverted: the unprintable ones count up from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


Vocabulary = MetaVocabulary | JsonVocabulary
