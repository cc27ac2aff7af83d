"""Text to ids and back: golden ids, every byte, special names typed by users, whole characters."""

import json

import pytest
from deferred import deferred
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import generation, rank_file, sentencepiece_like

from jax_llama3 import Model
from jax_llama3.text.tokenizer import (
    GENERATION,
    JSON,
    MODEL,
    TextStream,
    Tokenizer,
    tokenizer_from_files,
)


@pytest.fixture(scope="module")
def meta() -> Tokenizer:
    """A small vocabulary in Meta's format: 263 ordinary ids, then the 256 special ones."""
    return tokenizer_from_files({MODEL: rank_file()})


def test_meta_format(meta: Tokenizer) -> None:
    assert meta.vocabulary.size == 263 + 256
    assert meta.bos_id == 263
    assert meta.stop_ids == (264, 263 + 8, 263 + 9)
    assert meta.encode("hello hello", bos=True) == [263, 259, 260]
    assert meta.encode("h") == [ord("h")]
    assert meta.vocabulary.special["<|eot_id|>"] == 263 + 9
    assert meta.vocabulary.special["<|reserved_special_token_0|>"] == 263 + 2
    assert meta.vocabulary.special["<|reserved_special_token_2|>"] == 263 + 12
    assert meta.vocabulary.special["<|reserved_special_token_245|>"] == 263 + 255


def test_special_names_typed_by_a_user_are_text(meta: Tokenizer) -> None:
    text = "a<|eot_id|>b<|begin_of_text|>"
    ids = meta.encode(text)
    assert max(ids) < 263
    assert meta.decode(ids) == text
    assert meta.decode([271, 272, 97]) == "<|eom_id|><|eot_id|>a"
    assert meta.decode([271, 272, 97], skip_special=True) == "a"


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_decode_inverts_encode(meta: Tokenizer, text: str) -> None:
    assert meta.decode(meta.encode(text)) == text


@deferred
def test_very_long_runs_do_not_overflow(meta: Tokenizer) -> None:
    for text in (" " * 60_000, "x" * 60_000, "ab " * 200_000):
        assert meta.decode(meta.encode(text)) == text


def test_a_stream_never_shows_half_a_character(meta: Tokenizer) -> None:
    text = "你好🙂é!"
    ids = list(text.encode())
    stream = TextStream(meta)
    pieces = [stream.push([token]) for token in ids]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)
    assert "\ufffd" not in "".join(pieces)


def test_output_that_ends_inside_a_character_shows_the_replacement(meta: Tokenizer) -> None:
    ids = list("é🙂".encode())[:-1]
    stream = TextStream(meta)
    assert stream.push(ids) == "é"
    assert stream.close() == "\ufffd"
    assert meta.decode(ids) == "é\ufffd"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"!!! 0\n", "base64"),
        (b"aGk= x\n", "base64 tokens and ranks"),
        (b"aGk= 0\naGk= 1\n", "ranks"),
        (b"aGk= 0\naGl= 0\n", "ranks"),
        (b"aGk= 0 1\n", "a rank is missing"),
        (b"aGk= 0 1 1\n", "base64 tokens and ranks"),
        (b"aGk== 0\n", "multiple of four"),
        (b"aGkx== 0\n", "multiple of four"),
        (b"aGk 0\n", "base64 tokens and ranks"),
        (b"aG=k 0\n", "base64"),
        (b"=aGk 0\n", "base64"),
        (b"==== 0\n", "base64"),
        (b"== 0\n", "base64"),
        (b"aGk==== 0\n", "base64"),
        (b"aG-k 0\n", "base64"),
        (b"aGk= 5\n", "ranks"),
        (b"", "tokenizer.model: it is empty"),
        (b"aGk= 1\naGk= 0\n", "a token stands there twice"),
        (b"version https://git-lfs.github.com/spec/v1\n", "base64"),
    ],
)
def test_a_damaged_rank_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer_from_files({MODEL: data})


def test_a_lone_surrogate_is_refused(meta: Tokenizer) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        meta.encode("a\ud800")


def test_sentencepiece_kind_with_byte_fallback() -> None:
    tokenizer = tokenizer_from_files({JSON: sentencepiece_like(), GENERATION: generation()})
    ids = tokenizer.encode("a a\n🙂")
    assert tokenizer.decode(ids) == "a a\n🙂"
    assert tokenizer.encode("<end>") != [260]
    assert tokenizer.decode([260]) == "<end>"
    assert tokenizer.decode([260], skip_special=True) == ""


def test_ids_may_have_gaps() -> None:
    values = json.loads(sentencepiece_like())
    values["added_tokens"][0]["id"] = 300
    values["model"]["vocab"]["<end>"] = 300
    data = json.dumps(values).encode()
    tokenizer = tokenizer_from_files(
        {JSON: data, GENERATION: generation(eos_id=300, stop_ids=[300])}
    )
    assert tokenizer.vocabulary.size == 301
    assert tokenizer.decode([300]) == "<end>"
    assert tokenizer.decode([299]) == ""


@pytest.mark.parametrize(
    "changes",
    [{"stop_ids": [9999]}, {"bos_id": -1}, {"stop_ids": 3}, {"extra": 1}, {"eos_id": "x"}],
)
def test_a_generation_file_that_lies_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"generation\.json"):
        tokenizer_from_files({JSON: sentencepiece_like(), GENERATION: generation(**changes)})


def test_a_damaged_tokenizer_json_is_refused() -> None:
    for data in (b"", b"{}", b"\x1f\x8b", sentencepiece_like()[:-20]):
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            tokenizer_from_files({JSON: data, GENERATION: generation()})


@pytest.mark.real
def test_default_model(default_model: Model) -> None:
    tokenizer = default_model.tokenizer
    assert tokenizer.stop_ids == (2,)
    assert tokenizer.encode("The capital of France is", bos=True) == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("2026") == tokenizer.encode("2") + tokenizer.encode("0") + (
        tokenizer.encode("2") + tokenizer.encode("6")
    )
    # A superscript is a number too and stands alone, as llama.cpp splits it.
    assert tokenizer.encode("x²²") == tokenizer.encode("x") + 2 * tokenizer.encode("²")
    assert 2 not in tokenizer.encode("<|im_end|>")
