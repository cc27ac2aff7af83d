"""SentencePiece's `tokenizer.model`: a protocol buffer of pieces and of what is done to a text."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from .pieces import NORMAL, Piece

_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
_BPE = 2


class PieceFile(NamedTuple):
    """What such a file says."""

    pieces: list[Piece]
    prefix: bool  # a space is put before a text
    collapse: bool  # spaces at its ends go, and runs of them become one
    bos_id: int
    eos_id: int


def is_sentencepiece(data: bytes) -> bool:
    """Whether a `tokenizer.model` is one of SentencePiece's: Meta's other kind is a text."""
    # The tag of the first piece; a text of base64 begins with no empty line.
    return data[:1] == b"\n"


def read_sentencepiece(data: bytes) -> PieceFile:
    """The pieces and settings of a file; one that is damaged or no BPE raises ValueError."""
    try:
        return _read(data)
    except (struct.error, UnicodeDecodeError, IndexError, TypeError) as error:
        raise ValueError(f"damaged SentencePiece file: {error}") from None


def _read(data: bytes) -> PieceFile:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    denormalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
            pieces.append(
                Piece(fields[1].decode() if 1 in fields else "", score, fields.get(3, NORMAL))
            )
        elif number in (2, 3, 5):
            {2: trainer, 3: normalizer, 5: denormalizer}[number].update(_fields(value))
    kind = trainer.get(3, 1)
    if kind != _BPE:
        name = _MODEL_TYPES.get(kind, kind)
        raise ValueError(f"its SentencePiece model is of type {name!r}, only 'BPE' is supported")
    if trainer.get(24) or not normalizer.get(5, 1) or denormalizer.get(2):
        raise ValueError("what it does to spaces or to decoded text is not supported")
    if normalizer.get(2):
        raise ValueError(
            "it replaces characters by a table of its own, which a tokenizer.json cannot do exactly; "
            "save a tokenizer.json beside it with transformers, if its ids are good enough"
        )
    ids = [_signed(trainer.get(field, default)) for field, default in ((41, 1), (42, 2))]
    return PieceFile(
        pieces=pieces,
        prefix=bool(normalizer.get(3, 1)),
        collapse=bool(normalizer.get(4, 1)),
        bos_id=ids[0],
        eos_id=ids[1],
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a message: integers, or the bytes of everything else."""
    if not isinstance(data, bytes):
        raise ValueError("damaged SentencePiece file: a number stands where a message belongs")
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = {1: 8, 5: 4}[kind]
        else:
            raise ValueError(f"damaged SentencePiece file: a field of type {kind}")
        if size > len(data) - position:
            raise ValueError("damaged SentencePiece file: it ends too early")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("damaged SentencePiece file: a number is too long")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
