"""SentencePiece's byte-pair vocabularies, from whatever file, as a `tokenizer.json`."""

import math
import re
from typing import Any, NamedTuple

SPACE = "\u2581"  # what a space is in a piece
_LONGEST = 1000

# The kinds of pieces, numbered alike in SentencePiece's files and in GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Piece(NamedTuple):
    """One token; its id is its place in the list of them."""

    text: str
    score: float
    kind: int


class Spaces(NamedTuple):
    """What happens to a text before it is cut into pieces."""

    prefix: bool  # a space is put before it, so that its first word is written like the others
    prefix_after_special: bool  # and before the text that follows a special token
    collapse: bool = False  # spaces at its ends go, and runs of them become one


def pieces_json(pieces: list[Piece], added: dict[int, dict], spaces: Spaces) -> bytes:
    """The `tokenizer.json` whose ids are SentencePiece's own.

    `added` are tokens by their id as tokenizer_config.json describes them: more tokens than the
    pieces, or pieces that are special although they are not marked so. What a `tokenizer.json` cannot
    say raises ValueError.
    """
    from tokenizers import AddedToken, Tokenizer, models

    pieces = [_marked(piece, added.get(index)) for index, piece in enumerate(pieces)]
    vocab = {piece.text: index for index, piece in enumerate(pieces)}
    if len(vocab) < len(pieces):
        raise ValueError("its vocabulary holds a token twice")
    vocab |= {entry["content"]: index for index, entry in added.items()}
    symbols = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    model = models.BPE(
        vocab=vocab,
        merges=_merges(pieces),
        unk_token=next((piece.text for piece in pieces if piece.kind == UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=_falls_back(pieces),
        ignore_merges=bool(symbols),
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = _steps(spaces, symbols)
    tokenizer.decoder = _decoder(spaces)
    # A special token found in the text as it is cuts it into parts, each of which is a text of its own.
    normalized = (spaces.prefix or spaces.collapse) and not spaces.prefix_after_special
    if normalized:
        _check_added(added)
    special = {
        index: {"content": piece.text, "special": True}
        for index, piece in enumerate(pieces)
        if piece.kind in (CONTROL, UNKNOWN)
    }
    for _, entry in sorted({**special, **added}.items()):
        tokenizer.add_tokens([AddedToken(**{**entry, "normalized": normalized})])
    return tokenizer.to_str().encode()


def _check_added(added: dict[int, dict]) -> None:
    """Refuse tokens that stand for spaces, if they are looked for where spaces are "\u2581"."""
    for entry in added.values():
        text = entry["content"]
        if entry.get("lstrip") or entry.get("rstrip") or " " in text or SPACE in text:
            raise ValueError(
                f"its added token {text!r} takes spaces with it, which a tokenizer.json cannot say "
                "where no space follows a special token; convert a folder that has a tokenizer.json"
            )


def _marked(piece: Piece, entry: dict | None) -> Piece:
    """The piece as the tokenizer's settings see it: a special one is never made of text."""
    if entry is None:
        return piece
    if entry["content"] != piece.text:
        raise ValueError(f"token {piece.text!r} has the id of the added token {entry['content']!r}")
    special = entry.get("special") and piece.kind != UNKNOWN
    return piece._replace(kind=CONTROL) if special else piece


def _falls_back(pieces: list[Piece]) -> bool:
    """Whether a character without a piece becomes its bytes."""
    found = {piece.text for piece in pieces if piece.kind == BYTE}
    if found and found != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise ValueError(f"its vocabulary has {len(found)} tokens of single bytes, not all 256")
    return bool(found)


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """The merges whose order is that of the scores of what they make.

    SentencePiece merges the neighbours whose piece has the highest score, and of equal ones the
    leftmost; the tokenizers library those of the first merge in the list, and of equal ones the
    leftmost. That is the same if no two pieces have one score, which is checked. The two ways to make
    one piece follow each other; that their order does not matter was seen in many texts, not proved.
    """
    for piece in pieces:
        _check_length(piece.text)
    scores = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    ranked = sorted(scores, key=lambda text: -scores[text])
    merges: list[tuple[str, str]] = []
    before = None
    for text in ranked:
        cuts = [cut for cut in range(1, len(text)) if _is_merge(text, cut, scores)]
        if cuts:
            if before is not None and not scores[before] > scores[text]:
                raise ValueError(
                    f"its tokens {before!r} and {text!r} have the same score {scores[text]:g}, and a "
                    "tokenizer.json cannot say that the one further left is made first; convert a "
                    "Hugging Face folder that has a tokenizer.json"
                )
            before = text
        merges += [(text[:cut], text[cut:]) for cut in cuts]
    for piece in pieces:
        if piece.kind == UNUSED and any(
            _is_merge(piece.text, cut, scores) for cut in range(1, len(piece.text))
        ):
            raise ValueError(
                f"its token {piece.text!r} is marked as unused, which is not supported"
            )
    if not all(map(math.isfinite, scores.values())):
        raise ValueError("its vocabulary holds a score that is not finite")
    return merges


def _check_length(text: str) -> None:
    """Refuse what is no token of a language; the ways to cut it would take very long to try."""
    if len(text) > _LONGEST:
        raise ValueError(f"its token {text[:20]!r}... has {len(text)} characters")


def _is_merge(text: str, cut: int, scores: dict[str, float]) -> bool:
    sides = text[:cut], text[cut:]
    if all(side in scores for side in sides):
        return True
    if all(side in scores or len(side) == 1 for side in sides):
        raise ValueError(f"its token {text!r} holds a character that is no token itself")
    return False


def _steps(spaces: Spaces, symbols: list[str]) -> tuple[Any, Any]:
    """Normalizer and pre-tokenizer, in SentencePiece's order."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    first, then = _space_steps(spaces)
    if symbols:
        # A symbol is cut out and taken whole. What else would be taken whole by its name, if it
        # stands alone, is cut once more.
        names = "|".join(re.escape(text) for text in sorted(symbols, key=len, reverse=True))
        then.append(pre_tokenizers.Split(Regex(names), "isolated"))
        then.append(pre_tokenizers.Split(Regex(r"\A<(?=0x[0-9A-F]{2}>\z)"), "isolated"))
    return normalizers.Sequence(first), pre_tokenizers.Sequence(then) if then else None


def _space_steps(spaces: Spaces) -> tuple[list[Any], list[Any]]:
    """Normalizers and pre-tokenizers that make "\u2581" of spaces, and put one before the text.

    Metaspace alone puts none before a text that begins with a space, as SentencePiece does unless it
    collapses spaces.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    signs = normalizers.Replace(" ", SPACE)
    doubled = normalizers.Replace(Regex(rf"\A{SPACE}"), 2 * SPACE)
    scheme = "always" if spaces.prefix_after_special else "first"
    metaspace = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    if spaces.collapse:
        # At the end SentencePiece takes its own sign for a space, too.
        ends = normalizers.Replace(Regex(rf"[ {SPACE}]+\z"), "")
        runs = normalizers.Replace(Regex(" {2,}"), " ")
        if spaces.prefix:
            return [ends, runs, doubled, signs], [metaspace]
        return [normalizers.Replace(Regex(r"\A +"), ""), ends, runs, signs], []
    if not spaces.prefix:
        return [signs], []
    if spaces.prefix_after_special:
        return [normalizers.Prepend(SPACE), signs], []
    return [signs, doubled], [metaspace]


def _decoder(spaces: Spaces) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaces.prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
