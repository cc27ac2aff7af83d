"""Small tokenizers as the files that hold them: Meta's ranks, and a vocabulary like SentencePiece's."""

import base64
import json

from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, pre_tokenizers

RANKS = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello", b" hello"]


RANKS += ["你".encode()[:2], "你".encode()]


def rank_file(tokens: list[bytes] = RANKS) -> bytes:
    return b"\n".join(base64.b64encode(t) + b" %d" % i for i, t in enumerate(tokens)) + b"\n"


def sentencepiece_like() -> bytes:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=[("\u2581", "a")], byte_fallback=True)
    tokenizer = JsonTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer.to_str().encode()


def generation(**changes: object) -> bytes:
    values = {"bos_id": None, "eos_id": 260, "add_bos": False, "stop_ids": [260]}
    return json.dumps({**values, **changes}).encode()
