"""Small SentencePiece models, trained on the project's own README, as files and as GGUF's fields."""

import functools
import io
from pathlib import Path

import numpy as np
import pytest

from convert.formats.sentencepiece_file import PieceFile, read_sentencepiece

sentencepiece = pytest.importorskip("sentencepiece")

README = Path(__file__).parent.parent / "README.md"
# Like the models of Llama 2, TinyLlama and Mistral: no normalisation, bytes for what has no piece.
LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.99,
}
KINDS: dict[str, dict] = {
    "llama": {},
    "mistral": {"control_symbols": ["[INST]", "[/INST]", "[TOOL_CALLS]"], "split_digits": False},
    "symbols": {"user_defined_symbols": ["<|im_start|>", "<|im_end|>", "Jax"]},
    "no space before": {"add_dummy_prefix": False},
    "collapsed": {"remove_extra_whitespaces": True},
    "collapsed, no space before": {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
}


@functools.cache
def trained(kind: str) -> bytes:
    """The tokenizer.model of a kind."""
    return train(**KINDS[kind])


def train(**options: object) -> bytes:
    file = io.BytesIO()
    lines = README.read_text(encoding="utf-8").splitlines()
    settings = {**LLAMA, "vocab_size": 700, "num_threads": 1, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=file, **settings
    )
    return file.getvalue()


def processor(data: bytes) -> "sentencepiece.SentencePieceProcessor":
    return sentencepiece.SentencePieceProcessor(model_proto=data)


def gguf_fields(file: PieceFile, **changes: object) -> dict:
    """The fields that llama.cpp's converter writes for such a file."""
    fields = {
        "model": "llama",
        "tokens": [piece.text for piece in file.pieces],
        "scores": np.array([piece.score for piece in file.pieces], np.float32),
        "token_type": np.array([piece.kind for piece in file.pieces], np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_space_prefix": file.prefix,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in {**fields, **changes}.items()}


def pieces_of(kind: str) -> PieceFile:
    return read_sentencepiece(trained(kind))
