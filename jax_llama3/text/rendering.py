"""A rendered conversation as ids: the template's tokens are tokens, what a message says is text."""

import re
from collections.abc import Iterable, Iterator

from .authorship import MESSAGE, TEMPLATE, Authored, authors_of
from .vocabulary import Added, JsonVocabulary, Vocabulary


def encode_rendered(vocabulary: Vocabulary, text: Authored, template: str) -> list[int]:
    """The ids that the tokenizers library makes of the text, but no token of a name that was typed.

    Special tokens are the template's alone, and so are other added tokens that the template uses.
    """
    marks = {token.id: token for token in _marks(vocabulary.added, text, template)}
    if isinstance(vocabulary, JsonVocabulary):
        found = vocabulary.encode_with_added(text)
        if all(_is_templates(text, *span) for token, *span in found if token in marks):
            return [token for token, *_ in found]
    names = [token.name for token in marks.values()]
    ids: list[int] = []
    for index, piece in enumerate(_pieces(text, [*marks.values()])):
        if isinstance(piece, Added):
            ids.append(piece.id)
            continue
        start = index == 0 or vocabulary.prefix_after_special
        plain = vocabulary.encode_apart(piece, names, start=start)
        if typed := {*plain} & {*marks}:
            name = marks[typed.pop()].name
            raise ValueError(
                f"the tokenizer makes the token {name!r} of plain text; change the text"
            )
        ids += plain
    return ids


def _marks(added: Iterable[Added], text: Authored, template: str) -> Iterator[Added]:
    """Special tokens, and the other added tokens that stand in the template or that it rendered.

    Blanks and words are no marks of a template: they are the vocabulary of all texts.
    """
    for token in added:
        mark = not re.fullmatch(r"\s*|\w+", token.name)
        used = token.name in template or any(_is_templates(text, *s) for s in _spans(token, text))
        if token.special or (mark and used):
            yield token


def _spans(token: Added, text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in re.finditer(re.escape(token.name), text))


def _is_templates(text: Authored, start: int, stop: int) -> bool:
    """Whether the template wrote this token: its ends, and a role between them at the most."""
    name = text[start:stop]
    name = name.strip() or name  # a token may take the blanks around it, whoever wrote them
    authors = authors_of(name)
    return MESSAGE not in authors and authors[:1] == authors[-1:] == TEMPLATE


def _pieces(text: Authored, marks: list[Added]) -> Iterator[str | Added]:
    """The text cut at the tokens that the template wrote, the longest of those at one place."""
    longest = sorted((m for m in marks if m.name), key=lambda mark: len(mark.name), reverse=True)
    pattern = re.compile("|".join(re.escape(mark.name) for mark in longest) or r"(?!)")
    done = place = 0
    while match := pattern.search(text, place):
        here = (mark for mark in longest if _stands(text, match.start(), mark))
        mark = next(here, None)
        if mark is None:
            place = match.start() + 1
            continue
        start, stop = match.start(), match.start() + len(mark.name)
        if mark.lstrip:
            start = max(done, len(text[:start].rstrip()))
        if mark.rstrip:
            stop = len(text) - len(text[stop:].lstrip())
        yield str.__getitem__(text, slice(done, start))
        yield mark
        done = place = stop
    yield str.__getitem__(text, slice(done, None))


def _stands(text: Authored, start: int, mark: Added) -> bool:
    stop = start + len(mark.name)
    if not text.startswith(mark.name, start) or not _is_templates(text, start, stop):
        return False
    around = str.__getitem__(text, slice(max(start - 1, 0), start)), text[stop : stop + 1]
    return not mark.single_word or not any(re.match(r"\w", character) for character in around)
