"""SentencePiece's vocabularies in every file that holds one: the library's ids, and every text back."""

import itertools
import json
from pathlib import Path

import pytest
from dialogs import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_files import KINDS, gguf_fields, pieces_of, processor, train, trained

from convert.formats.gguf.vocabulary import gguf_texts
from convert.formats.huggingface.tokenizer import huggingface_texts
from convert.formats.pieces import NORMAL, UNUSED, USER_DEFINED, Piece, Spaces, pieces_json
from convert.formats.sentencepiece_file import PieceFile, is_sentencepiece, read_sentencepiece
from jax_llama3.text.tokenizer import (
    GENERATION,
    JSON,
    MODEL,
    TextStream,
    Tokenizer,
    tokenizer_from_files,
)
from jax_llama3.text.tokenizer_json import build

PLAIN = [kind for kind in KINDS if kind not in ("collapsed", "collapsed, no space before")]
# What stands in the way: names of tokens, spaces at the borders, the sign of a space itself.
NAMES = ["<s>", "</s>", "<unk>", "<0x0A>", "<0xFF>", "[INST]", "<|im_start|>", "Jax", "JaxJax"]
ODD = [f"{a}{name}{b}" for name in NAMES for a in ("", " ", "a", "Jax") for b in ("", " ", "\n")]
ODD += [
    " ",
    "  ",
    " a",
    "   a  b   ",
    "\u2581",
    "a\u2581\u2581b",
    "",
    "\n",
    " \n ",
    "=" * 77,
    "ab" * 500,
]


def tokenizer_of(kind: str, *, legacy: bool = True) -> Tokenizer:
    file = pieces_of(kind)
    spaces = Spaces(file.prefix, legacy, file.collapse)
    generation = {"bos_id": 1, "eos_id": 2, "add_bos": True, "stop_ids": [2]}
    files = {
        JSON: pieces_json(file.pieces, {}, spaces),
        GENERATION: json.dumps(generation).encode(),
    }
    return tokenizer_from_files(files)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_texts_have_sentencepieces_ids(kind: str, legacy: bool) -> None:
    theirs, ours = processor(trained(kind)), tokenizer_of(kind, legacy=legacy)
    for text in TEXTS + ODD:
        assert ours.encode(text) == theirs.encode(text), repr(text)


@pytest.mark.reference
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_transformers_has_the_same_ids_of_the_same_file(
    tmp_path: Path, kind: str, legacy: bool
) -> None:
    """Except where a text begins with a space, before which transformers 5 puts no other one."""
    from transformers import AutoTokenizer

    (tmp_path / MODEL).write_bytes(trained(kind))
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 700}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenizer_from_files(huggingface_texts(tmp_path, config)[0])
    names = ours.vocabulary.special
    texts = [
        t for t in TEXTS + ODD if t[:1] not in " \u2581" and not any(name in t for name in names)
    ]
    assert len(texts) > 900
    for text in texts:
        assert ours.encode(text, bos=True) == theirs.encode(text), repr(text)


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if kind != "symbols"])
def test_a_gguf_file_of_the_pieces_has_the_same_ids(kind: str) -> None:
    """Symbols, around which llama.cpp puts other spaces, have a test of their own."""
    theirs, texts = processor(trained(kind)), gguf_texts(gguf_fields(pieces_of(kind)))
    ours = tokenizer_from_files(texts)
    for text in TEXTS[::10] + ODD:
        assert ours.encode(text, bos=True) == [1, *theirs.encode(text)], repr(text)


GOLDEN = json.loads((Path(__file__).parent / "golden" / "sentencepiece_tokens.json").read_bytes())


@pytest.mark.parametrize("kind", GOLDEN["vocabularies"])
def test_a_gguf_vocabulary_has_llama_cpps_ids(kind: str) -> None:
    """Those of docs/make_sentencepiece_golden.py, whose pieces are kept beside the ids."""
    stored = GOLDEN["vocabularies"][kind]
    pieces = [Piece(*row) for row in stored["pieces"]]
    fields = gguf_fields(PieceFile(pieces, stored["prefix"], False, 1, 2))
    tokenizer = tokenizer_from_files(gguf_texts(fields))
    place = [*GOLDEN["vocabularies"]].index(kind)
    symbols = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    assert len(GOLDEN["texts"]) >= 300
    for text, ids in GOLDEN["texts"]:
        assert tokenizer.encode(text) == ids[place], repr(text)
        # After a symbol llama.cpp begins the text anew, with a space.
        if not any(symbol in text for symbol in symbols):
            assert tokenizer.decode(ids[place]) == text.replace("\u2581", " ")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", PLAIN)
def test_every_text_comes_back(kind: str, legacy: bool) -> None:
    """Only the sign of a space is a space afterwards, as in SentencePiece itself."""
    tokenizer = tokenizer_of(kind, legacy=legacy)
    for text in TEXTS + ODD:
        expected = text.replace("\u2581", " ")
        assert tokenizer.decode(tokenizer.encode(text)) == expected
        ids = tokenizer.encode(text, bos=True)
        assert tokenizer.decode(ids, skip_special=True) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(), more=st.text(alphabet=" ab\u00e9\n<>s/"), kind=st.sampled_from(PLAIN))
def test_text_that_continues_text_gets_no_space(text: str, more: str, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text) + tokenizer.encode(more, start=False)
    assert tokenizer.decode(ids) == (text + more).replace("\u2581", " ") or not text
    assert tokenizer.decode(tokenizer.encode(more, start=False), start=False) == more


@settings(max_examples=100, deadline=None)
@given(
    ids=st.lists(st.integers(0, 699)),
    skip=st.booleans(),
    start=st.booleans(),
    kind=st.sampled_from(PLAIN),
)
def test_pieces_of_a_stream_join_to_the_text(
    ids: list[int], skip: bool, start: bool, kind: str
) -> None:
    tokenizer = tokenizer_of(kind)
    stream = TextStream(tokenizer, skip_special=skip, start=start)
    pieces = [stream.push([token]) for token in ids]
    assert "".join(pieces) + stream.close() == tokenizer.decode(ids, skip_special=skip, start=start)


def test_one_space_is_dropped_at_the_beginning_and_nowhere_else() -> None:
    tokenizer = tokenizer_of("llama")
    ids = tokenizer.encode("a b")
    assert tokenizer.decode([*ids, *ids]) == "a b a b"
    assert tokenizer.decode(ids, start=False) == " a b"
    assert tokenizer.decode([1, *ids], skip_special=True) == "a b"
    assert tokenizer.decode(tokenizer.encode("  a")) == "  a"


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_are_text(kind: str) -> None:
    for legacy in (True, False):
        tokenizer = tokenizer_of(kind, legacy=legacy)
        special = {*tokenizer.vocabulary.special.values()}
        assert len(special) >= 3
        for name, around in itertools.product(tokenizer.vocabulary.special, ("", " ", "a", "Jax")):
            for start in (True, False):
                ids = tokenizer.encode(f"{around}{name}{around}", start=start)
                assert not special & {*ids}, name


def test_a_word_is_never_taken_for_a_special_token_of_its_name() -> None:
    """Llama 3's kind takes a word that is a token whole, even if no merge makes it."""
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["h", "i", "hi", "end", "x"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 1],
        "tokenizer.ggml.merges": ["h i"],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 3,
    }
    tokenizer = tokenizer_from_files(gguf_texts(values))
    assert tokenizer.vocabulary.special == {"end": 3}
    assert tokenizer.encode("hi") == [2]
    assert 3 not in tokenizer.encode("end")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_merges_are_those_of_the_definition(data: st.DataObject) -> None:
    """SentencePiece's rule, written down plainly: the best neighbours first, the leftmost of equal ones."""
    words = data.draw(st.lists(st.text("ab", min_size=2, max_size=6), unique=True, max_size=12))
    letters = [Piece(letter, -99.0, NORMAL) for letter in "ab"]
    pieces = [*letters, *(Piece(word, -float(i), NORMAL) for i, word in enumerate(words))]
    tokenizer = build(json.loads(pieces_json(pieces, {}, Spaces(False, False))))
    text = data.draw(st.text("ab", max_size=24))
    assert tokenizer.encode(text).tokens == spelled(text, pieces)


def spelled(text: str, pieces: list[Piece]) -> list[str]:
    scores = {piece.text: piece.score for piece in pieces}
    parts = [*text]
    while True:
        joined = [left + right for left, right in itertools.pairwise(parts)]
        best = max((scores[j] for j in joined if j in scores), default=None)
        if best is None:
            return parts
        place = next(i for i, j in enumerate(joined) if scores.get(j) == best)
        parts[place : place + 2] = [joined[place]]


REFUSED = {
    "unigram": (lambda: train(model_type="unigram"), "'unigram'"),
    "words": (lambda: train(model_type="word", hard_vocab_limit=False), "'word'"),
    "a suffix": (lambda: train(treat_whitespace_as_suffix=True), "spaces"),
    "a table": (lambda: train(normalization_rule_name="nmt_nfkc"), "table"),
    "half": (lambda: trained("llama")[:3000], "damaged"),
    "no number": (lambda: b"\x0a\xff", "damaged"),
    "a group": (lambda: b"\x0a\x00\x0b", "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_bpe_or_damaged_is_refused_in_a_line(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_sentencepiece(make())
    assert "\n" not in str(caught.value)


def test_a_cut_or_flipped_file_gives_pieces_or_a_value_error() -> None:
    data = trained("llama")
    for place in range(0, len(data), 97):
        for damaged in (data[:place], data[:place] + b"\xff" + data[place + 1 :]):
            try:
                file = read_sentencepiece(damaged)
            except ValueError:
                continue
            assert len(file.pieces) <= len(data)


def folder_of(path: Path, kind: str, **settings: object) -> Path:
    """A Hugging Face folder whose tokenizer is SentencePiece's file and these settings."""
    (path / MODEL).write_bytes(trained(kind))
    named = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps({**named, "legacy": False, **settings}))
    return path


def added(token: str = "700", **entry: object) -> dict:
    return {"added_tokens_decoder": {token: entry}}


LIES: dict[str, tuple[dict, str]] = {
    "a word for a flag": ({"legacy": "false"}, "legacy 'false'"),
    "a word for the beginning": ({"add_bos_token": "true"}, "add_bos_token 'true'"),
    "a number for the prefix": ({"add_prefix_space": 0}, "add_prefix_space 0"),
    "a list": ({"added_tokens_decoder": [1]}, "is no object of tokens"),
    "no content": (added(), "is no object of tokens"),
    "a number as content": (added(content=5), "is no object of tokens"),
    "a word for an id": (added("abc", content="<x>"), "'abc' is no token id"),
    "an id below 0": (added("-1", content="<x>"), "'-1' is no token id"),
    "two ids": (
        {"added_tokens_decoder": {i: {"content": "<x>"} for i in ("700", "701")}},
        "under two ids",
    ),
    "spaces before": (added(content="<x>", lstrip=True), "takes spaces"),
    "spaces after": (added(content="<x>", rstrip=True), "takes spaces"),
    "a space in it": (added(content=" the"), "takes spaces"),
    "the sign of a space in it": (added(content="\u2581the x"), "takes spaces"),
}


@pytest.mark.parametrize("case", LIES)
def test_settings_that_cannot_be_followed_are_refused_in_a_line(tmp_path: Path, case: str) -> None:
    settings, message = LIES[case]
    with pytest.raises(ValueError, match=message) as caught:
        huggingface_texts(folder_of(tmp_path, "llama", **settings), {})
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "text", "around"),
    [
        ("lstrip", "a  <x>b", ("a", "b")),
        ("lstrip", "a<x>  b", ("a", "  b")),
        ("rstrip", "a<x>  b", ("a", "b")),
        ("rstrip", "a  <x>b", ("a  ", "b")),
        ("single_word", "a <x> b", ("a ", " b")),
        ("single_word", "a<x>b", None),
    ],
)
@pytest.mark.parametrize(("kind", "legacy"), [("llama", True), ("no space before", False)])
def test_an_added_token_takes_the_spaces_that_its_flags_say(
    tmp_path: Path, kind: str, legacy: bool, flag: str, text: str, around: tuple[str, str] | None
) -> None:
    token = added(content="<x>", special=False, normalized=False, **{flag: True})
    texts = huggingface_texts(folder_of(tmp_path, kind, legacy=legacy, **token), {})[0]
    tokenizer = build(json.loads(texts[JSON]))
    found = tokenizer.encode(text, add_special_tokens=False).ids
    if around is None:
        assert 700 not in found
    else:
        before, after = (tokenizer.encode(part, add_special_tokens=False).ids for part in around)
        assert found == [*before, 700, *after]


def test_a_token_of_a_million_characters_is_refused_at_once() -> None:
    pieces = [Piece("a", -99.0, NORMAL), Piece("a" * 1_000_000, 0, NORMAL)]
    with pytest.raises(ValueError, match="has 1000000 characters"):
        pieces_json(pieces, {}, Spaces(True, True))


def piece(text: str, score: float, kind: int = NORMAL) -> Piece:
    return Piece(text, score, kind)


INEXACT = {
    "two of one score": ([piece("ab", 0), piece("ba", 0)], "the same score 0"),
    "no number": ([piece("ab", float("nan")), piece("ba", 0)], "score"),
    "a letter that is no token": ([piece("ac", 0)], "a character that is no token"),
    "unused": ([piece("ab", 0, UNUSED)], "unused"),
    "twice": ([piece("a", -7)], "twice"),
    "a byte alone": ([piece("<0x00>", 0, 6)], "not all 256"),
}


@pytest.mark.parametrize("case", INEXACT)
def test_what_a_tokenizer_json_cannot_say_is_refused(case: str) -> None:
    pieces, message = INEXACT[case]
    letters = [Piece("a", -99.0, NORMAL), Piece("b", -98.0, NORMAL)]
    with pytest.raises(ValueError, match=message):
        pieces_json([*letters, *pieces], {}, Spaces(True, True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token_id": 700}, "eos_token_id 700 is beyond its 700 tokens"),
        ({"bos_token_id": -1}, "bos_token_id -1"),
        ({"scores": [0.0]}, "not of one number"),
        ({"model": "bert"}, "'bert'"),
        ({"add_bos_token": 1}, "add_bos_token 1"),
    ],
)
def test_a_gguf_vocabulary_that_lies_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gguf_texts(gguf_fields(pieces_of("llama"), **change))


@pytest.mark.parametrize("pre", [None, "default", "smaug-bpe"])
def test_a_gguf_vocabulary_that_does_not_say_how_text_is_cut_is_refused(pre: str | None) -> None:
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.token_type": [1],
        "tokenizer.ggml.merges": [],
    }
    if pre is not None:
        fields["tokenizer.ggml.pre"] = pre
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre.*Hugging Face folder"):
        gguf_texts(fields)


def test_the_two_kinds_of_tokenizer_model_are_told_apart() -> None:
    assert is_sentencepiece(trained("llama"))
    assert not is_sentencepiece(b"IQ== 0\n")
