"""Text in, text out: stop texts across token borders, streams, scores."""

import math

import numpy as np
import pytest
from random_models import TINY, replace, sharp_params
from tokenizer_files import rank_file

from jax_llama3 import Model, Sampler, forward, generate, score, stream_generate
from jax_llama3.text.completion import GrowingText
from jax_llama3.text.tokenizer import MODEL, TextStream, tokenizer_from_files

CONFIG = replace(TINY, vocab_size=263 + 256)
TEXT = Model(CONFIG, sharp_params(4, CONFIG), tokenizer_from_files({MODEL: rank_file()}))
HOT = Sampler(temperature=3.0)


def long_text() -> str:
    return generate(TEXT, "hello", max_new_tokens=60, sampler=HOT, stop=()).text


def test_text_is_the_decoded_tokens_without_special_names() -> None:
    completion = generate(TEXT, "hello", max_new_tokens=60, sampler=HOT, stop=())
    assert completion.text == TEXT.tokenizer.decode(completion.tokens, skip_special=True)


@pytest.mark.parametrize("start", [0, 5, 20])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_stop_text_ends_the_row_wherever_token_borders_fall(start: int, length: int) -> None:
    text = long_text()
    stop = text[start : start + length]
    completion = generate(TEXT, "hello", max_new_tokens=60, sampler=HOT, stop=[stop, "never said"])
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop"
    assert stop in TEXT.tokenizer.decode(completion.tokens, skip_special=True)
    # Without the last token: what is certain, not the U+FFFD of a character that is not whole yet.
    assert stop not in TextStream(TEXT.tokenizer).push(completion.tokens[:-1])
    pieces = stream_generate(
        TEXT, "hello", max_new_tokens=60, sampler=HOT, stop=[stop, "never said"]
    )
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
    options = {"max_new_tokens": 60, "sampler": HOT}
    assert generate(TEXT, "hello", stop=text[4:9], **options).text == text[: text.index(text[4:9])]


def test_a_stop_text_that_only_begins_is_shown_in_the_end() -> None:
    text = long_text()
    stop = text[-3:] + "…"
    assert generate(TEXT, "hello", max_new_tokens=60, sampler=HOT, stop=[stop]).text == text


def test_a_row_stopped_by_text_leaves_the_others_running() -> None:
    prompts = ["hello", "he"]
    free = generate(TEXT, prompts, max_new_tokens=40, sampler=HOT, stop=())
    stop = free[0].text[3:6]
    first, second = generate(TEXT, prompts, max_new_tokens=40, sampler=HOT, stop=[stop])
    assert first.text == free[0].text[: free[0].text.index(stop)]
    expected = free[1].text.split(stop)[0]
    assert second.text == expected


def test_score_is_the_models_log_probability() -> None:
    scored = score(TEXT, "hello hello hello")
    assert scored.logprobs[0] is None
    logits = np.asarray(forward(TEXT.params, np.array([scored.tokens]), CONFIG)[0])[0]
    for index in range(1, len(scored.tokens)):
        row = logits[index - 1] - logits[index - 1].max()
        expected = row[scored.tokens[index]] - math.log(np.exp(row).sum())
        assert scored.logprobs[index] == pytest.approx(expected, abs=1e-4)
    assert score(TEXT, ["he", "hello"])[1].tokens == score(TEXT, "hello").tokens


def test_score_of_a_long_text_is_that_of_its_chunks_in_one() -> None:
    scored = score(TEXT, "he" * 150 + "x" * 200)
    logits = np.asarray(forward(TEXT.params, np.array([scored.tokens]), CONFIG)[0])[0]
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = logprobs[np.arange(len(scored.tokens) - 1), scored.tokens[1:]]
    np.testing.assert_allclose(scored.logprobs[1:], expected, atol=1e-4)
