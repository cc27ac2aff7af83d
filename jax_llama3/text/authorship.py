"""Text that knows of each of its characters who wrote it: a chat template, or whoever it renders.

A template computes with what a message says: it cuts, joins and replaces. Its own constants and the
texts of the messages are therefore `Authored`, a string like any other to the template, whose
operations keep the authors. Where an operation loses them, the text counts as a message's: so what a
person typed is never taken for the template's.
"""

import re
import string
from collections.abc import Iterable
from typing import Any

# A role is a message's too, but templates such as Phi's build the name of a token around it.
TEMPLATE, ROLE, MESSAGE = "t", "r", "m"

_CONVERSION = re.compile(r"%(?:\([^()]*\))?[-#0 +]*(?:\*|\d+)?(?:\.(?:\*|\d+))?[hlL]?.", re.DOTALL)


class Authored(str):
    """A string and the author of each character. All names of its own begin with an underscore.

    The sandbox hides such names from templates, to which the string must look like any other.
    """

    _authors: str

    def __new__(cls, text: str, authors: str) -> "Authored":
        self = super().__new__(cls, text)
        self._authors = authors if len(authors) == len(text) else MESSAGE * len(text)
        return self

    def __str__(self) -> str:
        return self  # not a copy without authors

    def __add__(self, other: Any) -> Any:
        # jinja2's Markup, which escapes what it is joined with, adds for itself.
        plain = isinstance(other, str) and not hasattr(other, "__html__")
        return joined((self, other)) if plain else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: Any) -> Any:
        return Authored(str.__mul__(self, count), self._authors * count)

    def __rmul__(self, count: Any) -> Any:
        return self * count

    def __getitem__(self, key: Any) -> "Authored":
        return Authored(str.__getitem__(self, key), self._authors[key])

    def __iter__(self) -> Any:
        return map(Authored, str.__iter__(self), self._authors)

    def __mod__(self, values: Any) -> str:
        return _percent(self, values)

    def join(self, pieces: Iterable[str]) -> "Authored":
        pieces = list(pieces)
        return Authored(str.join(self, pieces), self._authors.join(map(authors_of, pieces)))

    def replace(self, old: str, new: str, count: Any = -1) -> str:
        if not old:  # it stands between all characters
            return str.replace(self, old, new, count)
        return Authored(new, authors_of(new)).join(self.split(old, count))

    def lstrip(self, chars: str | None = None) -> "Authored":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> "Authored":
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None) -> "Authored":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> "Authored":
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str) -> "Authored":
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return _cut(self, str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        return _cut(self, str.rsplit(self, sep, maxsplit), sep)

    def partition(self, sep: str) -> tuple[str, str, str]:
        before, found, after = _cut(self, str.partition(self, sep), "")
        return before, found, after

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        before, found, after = _cut(self, str.rpartition(self, sep), "")
        return before, found, after

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = _cut(self, str.splitlines(self, True), "")
        if keepends:
            return lines
        kept = map(len, str.splitlines(self))
        return [line[:length] for line, length in zip(lines, kept, strict=True)]

    def upper(self) -> "Authored":
        return _recased(self, str.upper(self))

    def lower(self) -> "Authored":
        return _recased(self, str.lower(self))

    def title(self) -> "Authored":
        return _recased(self, str.title(self))

    def capitalize(self) -> "Authored":
        return _recased(self, str.capitalize(self))

    def swapcase(self) -> "Authored":
        return _recased(self, str.swapcase(self))

    def casefold(self) -> "Authored":
        return _recased(self, str.casefold(self))


def by(author: str, text: str) -> Authored:
    """The text as written by one author."""
    return Authored(text, author * len(text))


def authors_of(text: str) -> str:
    """One letter for each character; a string without authors is a message's."""
    return text._authors if isinstance(text, Authored) else MESSAGE * len(text)


def joined(pieces: Iterable[str]) -> Authored:
    """The pieces one after another."""
    return by(TEMPLATE, "").join(pieces)


def formatted(formatter: string.Formatter, text: Authored, args: Any, kwargs: Any) -> str:
    """`text.format(*args, **kwargs)` by the formatter."""
    whole = formatter.vformat(text, args, kwargs)
    pieces: list[str] = []
    count = 0
    for literal, field, spec, conversion in formatter.parse(text):
        pieces.append(Authored(literal, text._authors[:1] * len(literal)))
        if field is None:
            continue
        if not field or field[0] in ".[":  # numbered by its place
            field, count = f"{count}{field}", count + 1
        value, _ = formatter.get_field(field, args, kwargs)
        if not isinstance(value, str) or spec or conversion:
            rest = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            value = formatter.vformat(f"{{{field}{rest}}}", args, kwargs)
        pieces.append(value)
    return _if_sure(text, pieces, whole)


def _percent(text: Authored, values: Any) -> str:
    whole = str.__mod__(text, values)
    rest = iter(values if isinstance(values, tuple) else (values,))
    pieces: list[str] = []
    end = 0
    for match in _CONVERSION.finditer(text):
        conversion = match[0]
        pieces.append(text[end : match.start()])
        end = match.end()
        if conversion.endswith("%"):
            pieces.append(text[end - 1 : end])
        elif conversion.startswith("%("):
            pieces.append(str.__mod__(conversion, values))
        else:
            taken = tuple(next(rest) for _ in range(conversion.count("*") + 1))
            said = conversion == "%s" and isinstance(taken[0], str)
            pieces.append(taken[0] if said else str.__mod__(conversion, taken))
    return _if_sure(text, [*pieces, text[end:]], whole)


def _if_sure(text: Authored, pieces: list[str], whole: str) -> str:
    """The pieces joined, if one author wrote the format and they are what Python makes of it."""
    made = joined(pieces)
    return made if made == whole and len({*text._authors}) <= 1 else by(MESSAGE, whole)


def _cut(text: Authored, pieces: Iterable[str], sep: str | None) -> list[str]:
    """The pieces that `sep` (None: any blanks) separates in the text, from left to right."""
    found: list[str] = []
    start = 0
    for piece in pieces:
        if sep is None:
            start = str.find(text, piece, start)
        found.append(text[start : start + len(piece)])
        start += len(piece) + len(sep or "")
    return found


def _recased(text: Authored, changed: str) -> Authored:
    """Letters in another case: one for one, or, where one becomes two, all by a single author."""
    same = len(changed) == len(text) or len({*text._authors}) != 1
    return Authored(changed, text._authors if same else text._authors[0] * len(changed))
