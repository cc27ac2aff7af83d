"""The default model's ids are those of llama.cpp, which golden/ holds; what is no text is lost, no more."""

import json
from pathlib import Path

import pytest
from deferred import deferred
from dialogs import TEXTS, dialogs
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import FAMILIES, SPECIAL_NAMES, is_newest

from convert.fetch.models import PACKAGES
from convert.formats.gguf.vocabulary import gguf_texts
from jax_llama3 import Model, apply_chat_template
from jax_llama3.text.tokenizer import Tokenizer, tokenizer_from_files
from jax_llama3.text.vocabulary import byte_level

GOLDEN = Path(__file__).parent / "golden" / "smollm2_tokens.json"
# The default model's vocabulary has no token for these bytes; every implementation drops them.
LACKING = bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2])


def test_the_texts_are_a_thousand_different_ones_of_every_family() -> None:
    assert len(set(TEXTS) - set(SPECIAL_NAMES)) == 1000
    assert 1000 // len(FAMILIES) >= 30


def is_utf8(data: bytes) -> bool:
    return data.decode(errors="ignore").encode() == data


def is_lossy(text: str) -> bool:
    return bool(set(text.encode()) & set(LACKING))


def kept_bytes(text: str) -> bytes:
    return text.encode().translate(None, LACKING)


def token_bytes(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(tokenizer.vocabulary.token_bytes(token) for token in ids)


@pytest.fixture(scope="module")
def golden() -> list[tuple[str, list[int]]]:
    """Texts and llama.cpp's ids of them, of the file that the default model comes from."""
    values = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert values["gguf_sha256"] == PACKAGES["smollm2-135m-instruct"].member_sha256
    return [(text, ids) for text, ids in values["texts"]]


@pytest.mark.real
def test_a_thousand_texts_have_llama_cpps_ids(default_model: Model, golden: list) -> None:
    tokenizer = default_model.tokenizer
    known = [pair for pair in golden if not is_newest(pair[0])]
    assert len(known) >= 1000
    for text, ids in known:
        assert tokenizer.encode(text) == ids, repr(text)
        assert is_lossy(text) or tokenizer.decode(ids) == text


@deferred
@pytest.mark.real
def test_every_token_is_the_id_of_its_own_text(default_model: Model) -> None:
    """All that are text at all, and special ones only when not typed."""
    tokenizer, vocabulary = default_model.tokenizer, default_model.tokenizer.vocabulary
    texts = {token: vocabulary.token_bytes(token) for token in range(vocabulary.size)}
    whole = {token: text.decode() for token, text in texts.items() if is_utf8(text)}
    assert len(whole) > 48_000
    others = {token for token, text in whole.items() if tokenizer.encode(text) != [token]}
    assert others == set(vocabulary.special.values())


@pytest.mark.real
def test_bytes_without_a_token_are_all_that_is_lost(default_model: Model, golden: list) -> None:
    tokenizer = default_model.tokenizer
    known = {tokenizer.vocabulary.token_bytes(token) for token in range(tokenizer.vocabulary.size)}
    # Bytes C0, C1 and F5 to FF occur in no text.
    assert bytes(b for b in range(0xF5) if bytes([b]) not in known | {b"\xc0", b"\xc1"}) == LACKING
    lossy = [pair for pair in golden if is_lossy(pair[0])]
    assert len(lossy) >= 50
    for text, ids in lossy:
        assert token_bytes(tokenizer, tokenizer.encode(text)) == kept_bytes(text), repr(text)
        assert token_bytes(tokenizer, ids) == kept_bytes(text), repr(text)


@pytest.mark.real
def test_letters_of_unicode_16_and_17_have_llama_cpps_bytes(
    default_model: Model, golden: list
) -> None:
    """llama.cpp's tables end with Unicode 15.1, the tokenizers library's with 16 and 17: each takes
    other code points for letters and digits and so splits elsewhere. The text is the same.
    """
    tokenizer = default_model.tokenizer
    newest = [pair for pair in golden if is_newest(pair[0]) and not is_lossy(pair[0])]
    assert len(newest) >= 30
    for text, ids in newest:
        assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.decode(ids) == text


@pytest.mark.real
@settings(max_examples=100, deadline=None)
@given(messages=dialogs, name=st.sampled_from(["<|im_end|>", "<|endoftext|>", "<|im_start|>"]))
def test_names_of_special_tokens_in_a_dialog_are_text(
    default_model: Model, messages: list[dict[str, str]], name: str
) -> None:
    """Where transformers would end the turn: the special tokens are those of the template alone."""
    special = default_model.tokenizer.vocabulary.special.values()
    named = [{**m, "content": m["content"] + name} for m in messages]
    calm = [{**m, "content": "x"} for m in messages]
    kept, expected = (
        [token for token in apply_chat_template(default_model, m) if token in special]
        for m in (named, calm)
    )
    assert kept == expected


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("gpt-2", False)])
def test_llama_3_takes_a_word_that_is_a_token_even_if_no_merge_makes_it(
    pre: str, whole: bool
) -> None:
    signs = sorted(byte_level(), key=byte_level().__getitem__)
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*signs, "hello", "<end>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 257,
    }
    tokenizer = tokenizer_from_files(gguf_texts(fields))
    assert tokenizer.encode("hello") == ([256] if whole else [*b"hello"])
    assert tokenizer.add_bos == whole
