"""Text in, text out: stop texts across token borders, streams, scores."""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from deferred import deferred
from random_models import TINY, replace, sharp_params
from tokenizer_files import rank_file

from jax_llama3 import Model, Sampler, forward, generate, score, stream_generate
from jax_llama3.text.completion import GrowingText
from jax_llama3.text.tokenizer import MODEL, TextStream, tokenizer_from_files

CONFIG = replace(TINY, vocab_size=263 + 256)
TEXT = Model(CONFIG, sharp_params(4, CONFIG), tokenizer_from_files({MODEL: rank_file()}))
HOT = Sampler(temperature=3.0)
LONG = {"max_new_tokens": 60, "sampler": HOT, "ignore_eos": True}


def long_text() -> str:
    return generate(TEXT, "hello", **LONG).text


def test_text_is_the_decoded_tokens_without_special_names() -> None:
    completion = generate(TEXT, "hello", **LONG)
    assert completion.text == TEXT.tokenizer.decode(completion.tokens, skip_special=True)


@pytest.mark.parametrize("start", [0, 5, 20])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_stop_text_ends_the_row_wherever_token_borders_fall(start: int, length: int) -> None:
    text = long_text()
    stop = text[start : start + length]
    completion = generate(TEXT, "hello", **LONG, stop=[stop, "never said"])
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop"
    assert stop in TEXT.tokenizer.decode(completion.tokens, skip_special=True)
    # Without the last token: what is certain, not the U+FFFD of a character that is not whole yet.
    assert stop not in TextStream(TEXT.tokenizer).push(completion.tokens[:-1])
    pieces = stream_generate(TEXT, "hello", **LONG, stop=[stop, "never said"])
    assert "".join(piece.text for piece in pieces) == completion.text


def test_of_two_stop_texts_in_one_token_the_first_in_the_text_counts() -> None:
    hello = TEXT.tokenizer.encode("hello")
    assert len(hello) == 1
    for stops in (["llo", "el"], ["el", "llo"]):
        row = GrowingText(0, 1, [], stops, TextStream(TEXT.tokenizer))
        row.push(hello, [0.0])
        assert row.text == "h"
        assert row.finish_reason == "stop"


def test_nothing_is_shown_that_a_stop_text_may_begin_with() -> None:
    row = GrowingText(0, 1, [], ["abc"], TextStream(TEXT.tokenizer))
    shown = [row.push([token], [0.0]) for token in b"xabab"]
    assert shown == ["x", "", "", "ab", ""]
    assert row.close() == "ab"


def test_a_single_stop_text_need_not_be_in_a_list() -> None:
    text = long_text()
    assert generate(TEXT, "hello", stop=text[4:9], **LONG).text == text[: text.index(text[4:9])]


def test_a_stop_text_that_only_begins_is_shown_in_the_end() -> None:
    text = long_text()
    stop = text[-3:] + "…"
    assert generate(TEXT, "hello", **LONG, stop=[stop]).text == text


def test_a_row_stopped_by_text_leaves_the_others_running() -> None:
    prompts = ["hello", "he"]
    options = {"max_new_tokens": 40, "sampler": HOT, "ignore_eos": True}
    free = generate(TEXT, prompts, **options)
    stop = free[0].text[3:6]
    first, second = generate(TEXT, prompts, **options, stop=[stop])
    assert first.text == free[0].text[: free[0].text.index(stop)]
    expected = free[1].text.split(stop)[0]
    assert second.text == expected


def model_that_stops_at(token: int) -> Model:
    tokenizer = dataclasses.replace(TEXT.tokenizer, stop_ids=(token,))
    return TEXT._replace(tokenizer=tokenizer)


def test_stops_are_added_to_the_models_own_which_ignore_eos_takes_away() -> None:
    free = generate(TEXT, "hello", **LONG)
    own, other = free.tokens[9], free.tokens[5]
    model = model_that_stops_at(own)
    options = {"max_new_tokens": 60, "sampler": HOT}
    first = min(free.tokens.index(own), free.tokens.index(other))
    assert generate(model, "hello", **options).tokens == free.tokens[: free.tokens.index(own) + 1]
    both = generate(model, "hello", **options, stop=other)
    assert both.tokens == free.tokens[: first + 1]
    assert generate(model, "hello", **options, stop=()).finish_reason == "stop"
    assert generate(model, "hello", **LONG, stop=()).tokens == free.tokens
    alone = generate(model, "hello", **LONG, stop=[other])
    assert alone.tokens == free.tokens[: free.tokens.index(other) + 1]


def test_the_name_of_a_special_token_as_a_stop_text_stops() -> None:
    free = generate(TEXT, "hello", **LONG)
    names = TEXT.tokenizer.special_names
    place = next(index for index, token in enumerate(free.tokens) if token in names)
    name = names[free.tokens[place]]
    for stop in (name, ["never said", name]):
        completion = generate(TEXT, "hello", **LONG, stop=stop)
        assert completion.tokens == free.tokens[: place + 1]
        assert completion.finish_reason == "stop"
        assert name not in completion.text


@pytest.mark.parametrize("kind", [tuple, np.array, jnp.array])
def test_ids_of_any_kind_are_ids(kind: Callable) -> None:
    ids = TEXT.tokenizer.encode("hello he")
    options = {"max_new_tokens": 3, "ignore_eos": True}
    one = generate(TEXT, ids, **options)
    assert generate(TEXT, kind(ids), **options).tokens == one.tokens
    assert generate(TEXT, kind([ids, ids]), **options)[0].tokens == one.tokens
    assert score(TEXT, kind(ids)) == score(TEXT, ids)
    assert score(TEXT, kind([ids, ids])) == [score(TEXT, ids)] * 2


@pytest.mark.reference
def test_ids_of_torch_are_ids() -> None:
    import torch

    ids = [104, 105, 256]
    options = {"max_new_tokens": 3, "ignore_eos": True}
    expected = generate(TEXT, ids, **options).tokens
    assert generate(TEXT, torch.tensor(ids), **options).tokens == expected
    assert generate(TEXT, torch.tensor([ids]), **options)[0].tokens == expected
    assert score(TEXT, torch.tensor(ids)) == score(TEXT, ids)


def test_what_is_no_id_is_refused() -> None:
    for wrong in ([1.5], np.array([1.0]), [None], [b"x"]):
        with pytest.raises(ValueError, match="prompt 0 is no list of token ids"):
            generate(TEXT, wrong)


def test_score_is_the_models_log_probability() -> None:
    scored = score(TEXT, "hello hello hello")
    assert scored.logprobs[0] is None
    logits = np.asarray(forward(TEXT.params, np.array([scored.tokens]), CONFIG)[0])[0]
    for index in range(1, len(scored.tokens)):
        row = logits[index - 1] - logits[index - 1].max()
        expected = row[scored.tokens[index]] - math.log(np.exp(row).sum())
        assert scored.logprobs[index] == pytest.approx(expected, abs=1e-4)
    assert score(TEXT, ["he", "hello"])[1].tokens == score(TEXT, "hello").tokens


@deferred
def test_score_of_a_long_text_is_that_of_its_chunks_in_one() -> None:
    scored = score(TEXT, "he" * 150 + "x" * 200)
    logits = np.asarray(forward(TEXT.params, np.array([scored.tokens]), CONFIG)[0])[0]
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = logprobs[np.arange(len(scored.tokens) - 1), scored.tokens[1:]]
    np.testing.assert_allclose(scored.logprobs[1:], expected, atol=1e-4)
