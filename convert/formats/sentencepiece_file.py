"""SentencePiece's `tokenizer.model`: a protocol buffer of pieces and of what is done to a text."""

from typing import Any, NamedTuple

from .pieces import Piece

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
    model = _parse(data)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != _BPE:
        name = trainer.ModelType.Name(trainer.model_type).lower()
        raise ValueError(f"its SentencePiece model is of type {name!r}, only 'bpe' is supported")
    if (
        trainer.treat_whitespace_as_suffix
        or not normalizer.escape_whitespaces
        or model.denormalizer_spec.precompiled_charsmap
    ):
        raise ValueError("what it does to spaces or to decoded text is not supported")
    if normalizer.precompiled_charsmap:
        raise ValueError(
            "it replaces characters by a table of its own, which a tokenizer.json cannot do exactly; "
            "save a tokenizer.json beside it with transformers, if its ids are good enough"
        )
    return PieceFile(
        pieces=[Piece(piece.piece, piece.score, piece.type) for piece in model.pieces],
        prefix=normalizer.add_dummy_prefix,
        collapse=normalizer.remove_extra_whitespaces,
        bos_id=trainer.bos_id,
        eos_id=trainer.eos_id,
    )


def _parse(data: bytes) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    # An older protobuf refuses what sentencepiece brings by an error of its own kind.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModuleNotFoundError(
            "SentencePiece's files need the packages sentencepiece and protobuf: "
            f"pip install --upgrade 'jax_llama3[convert]' ({reason})"
        ) from None
    made: Any = sentencepiece_model_pb2  # its classes are made as it is imported
    model = made.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"damaged SentencePiece file: {reason}") from None
    if not model.pieces:
        raise ValueError("damaged SentencePiece file: it holds no pieces")
    return model
