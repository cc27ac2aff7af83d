"""Generation: batches, stops, seeds and streams, on random weights with ids alone."""

import inspect
import time

import jax
import numpy as np
import pytest
from random_models import TINY, replace, sharp_params

from jax_llama3 import (
    Cache,
    Completion,
    Model,
    Sampler,
    forward,
    generate,
    init_cache,
    prefill,
    score,
    stream_generate,
)
from jax_llama3.decoding import generation
from jax_llama3.decoding.generation import Request, check_request, generate_tokens
from jax_llama3.decoding.sampling import active_settings, choose_tokens
from jax_llama3.runtime.compilation import count_compilations

MODEL = Model(TINY, sharp_params(7, TINY), None)
PROMPTS = [[5, 9, 2], list(range(40)), [77]]
HOT = Sampler(temperature=1.5, top_k=60, top_p=0.95)


def run(prompts: list, **options: object) -> list[Completion]:
    return generate(MODEL, prompts, **{"max_new_tokens": 20, "stop": (), **options})


def ids_of(request: Request, cache: Cache | None = None) -> list[list[list[int]]]:
    """What each call of the device added to each row."""
    request = check_request(request, TINY, cache)
    return [new.tokens for new, _ in generate_tokens(MODEL.params, request, TINY, cache=cache)]


def test_greedy_generation_is_the_argmax_of_forward() -> None:
    completion = run(PROMPTS[:1])[0]
    tokens = np.array([PROMPTS[0] + completion.tokens])
    logits = np.asarray(forward(MODEL.params, tokens, TINY)[0])[0]
    assert completion.tokens == logits[2:-1].argmax(-1).tolist()
    logprobs = jax.nn.log_softmax(logits[2:-1])[np.arange(20), completion.tokens]
    np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
    assert completion.finish_reason == "length"
    assert completion.generation_tokens == 20
    assert completion.prompt_tokens == 3
    assert completion.generation_tps > 0
    assert completion.peak_memory > 0


def test_sampled_tokens_are_those_of_sample_with_the_rows_own_keys() -> None:
    row = 1
    completion = run(PROMPTS, sampler=HOT, seed=3)[row]
    tokens = np.array([PROMPTS[row] + completion.tokens])
    logits = forward(MODEL.params, tokens, TINY)[0][0, len(PROMPTS[row]) - 1 : -1]
    key = jax.random.fold_in(jax.random.key(3), row)
    draw = jax.jit(choose_tokens)
    for step, token in enumerate(completion.tokens):
        keys = jax.random.fold_in(key, step)[None]
        assert draw(keys, logits[step : step + 1], active_settings(HOT)).tolist() == [token]


@pytest.mark.parametrize("sampler", [Sampler(), HOT, Sampler(repetition_penalty=1.5)])
def test_row_0_of_a_batch_equals_its_prompt_alone(sampler: Sampler) -> None:
    for prompts in (PROMPTS, PROMPTS[::-1]):
        alone = run(prompts[:1], sampler=sampler)[0]
        batched = run(prompts, sampler=sampler)[0]
        assert alone.tokens == batched.tokens
        np.testing.assert_allclose(alone.logprobs, batched.logprobs, atol=1e-4)


def test_the_seed_decides_and_nothing_else_does() -> None:
    first = run(PROMPTS, sampler=HOT, seed=1)
    again = run(PROMPTS, sampler=HOT, seed=1)
    other = run(PROMPTS, sampler=HOT, seed=2)
    assert [c.tokens for c in first] == [c.tokens for c in again]
    assert [c.tokens for c in first] != [c.tokens for c in other]
    longer = run(PROMPTS, sampler=HOT, seed=1, max_new_tokens=50)
    assert [c.tokens[:20] for c in longer] == [c.tokens for c in first]
    assert first[0].tokens != first[0].tokens[:1] * 20  # the key changes from step to step


def test_a_stop_id_ends_its_row_alone_and_is_the_last_token() -> None:
    free = run(PROMPTS, sampler=HOT)
    stop = free[1].tokens[4]
    stopped = run(PROMPTS, sampler=HOT, stop=[stop])
    for before, after in zip(free, stopped, strict=True):
        end = before.tokens.index(stop) + 1 if stop in before.tokens else 20
        assert after.tokens == before.tokens[:end]
        assert len(after.logprobs) == end
        assert after.finish_reason == ("stop" if stop in before.tokens else "length")


def test_a_stopped_row_adds_nothing_while_the_others_go_on() -> None:
    free = run(PROMPTS, max_new_tokens=40, sampler=HOT, seed=0)
    stop = free[1].tokens[4]
    steps = ids_of(Request(PROMPTS, 40, HOT, stop_ids=(stop,)))
    rows = [[token for step in steps for token in step[row]] for row in range(len(PROMPTS))]
    for row, before in zip(rows, free, strict=True):
        end = before.tokens.index(stop) + 1 if stop in before.tokens else 40
        assert row == before.tokens[:end]
    assert len({len(row) for row in rows}) > 1


def test_all_rows_stopping_early_ends_the_loop() -> None:
    first = [completion.tokens[0] for completion in run(PROMPTS)]
    steps = ids_of(Request(PROMPTS, 400, stop_ids=tuple(sorted(set(first)))))
    assert steps == [[[token] for token in first]]


@pytest.mark.parametrize("size", [1, 2])
def test_max_new_tokens_is_exact(size: int) -> None:
    assert [len(c.tokens) for c in run(PROMPTS, max_new_tokens=size)] == [size] * 3


def test_no_new_tokens() -> None:
    completion = run(PROMPTS, max_new_tokens=0)[1]
    assert completion.tokens == []
    assert completion.text == ""
    assert completion.finish_reason == "length"


def test_a_prompt_read_in_chunks_continues_as_one_read_whole() -> None:
    config = replace(TINY, max_seq_len=2000)
    prompt = np.random.default_rng(0).integers(0, TINY.vocab_size, 1100).tolist()
    model = MODEL._replace(config=config)
    long, short = generate(model, [prompt, PROMPTS[0]], max_new_tokens=5, stop=())
    tokens = np.array([prompt + long.tokens])
    logits = np.asarray(jax.jit(forward, static_argnums=2)(MODEL.params, tokens, config)[0])[0]
    assert long.tokens == logits[1099:-1].argmax(-1).tolist()
    assert short.tokens == run(PROMPTS[:1], max_new_tokens=5)[0].tokens


@pytest.mark.parametrize("length", [511, 512, 513, 1024, 1025])
def test_no_token_of_a_prompt_is_lost_at_the_borders_of_chunks(length: int) -> None:
    config = replace(TINY, max_seq_len=2000)
    prompt = np.random.default_rng(1).integers(0, TINY.vocab_size, 1025).tolist()
    logits = np.asarray(
        jax.jit(forward, static_argnums=2)(MODEL.params, np.array([prompt]), config)[0]
    )
    model = MODEL._replace(config=config)
    completion = generate(model, prompt[:length], max_new_tokens=1, stop=())
    expected = jax.nn.log_softmax(logits[0, length - 1])
    assert completion.tokens == [int(expected.argmax())]
    np.testing.assert_allclose(completion.logprobs, [expected.max()], atol=1e-4)


@pytest.mark.reference
def test_the_penalty_counts_prompt_and_new_tokens_and_leaves_logprobs_alone() -> None:
    import torch
    import transformers

    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    completion = run(PROMPTS[:1], sampler=Sampler(repetition_penalty=1.7))[0]
    ids = list(PROMPTS[0])
    tokens = np.array([ids + completion.tokens])
    logits = np.asarray(forward(MODEL.params, tokens, TINY)[0][0])
    for step, token in enumerate(completion.tokens):
        row = torch.tensor(logits[len(ids) - 1])[None]
        assert int(penalty(torch.tensor([ids]), row).argmax()) == token
        assert completion.logprobs[step] == pytest.approx(
            float(row.log_softmax(-1)[0, token]), abs=1e-4
        )
        ids.append(token)
    assert completion.tokens != run(PROMPTS[:1])[0].tokens


def test_a_narrow_model_has_a_narrow_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), MODEL.params)
    made, init = [], generation.init_cache

    def watched(*arguments: object) -> Cache:
        made.append(init(*arguments))
        return made[-1]

    monkeypatch.setattr(generation, "_empty_cache", watched)
    generate(MODEL._replace(params=params), PROMPTS, max_new_tokens=1, stop=())
    (cache,) = made
    assert {leaf.dtype.name for leaf in (*cache.k, *cache.v)} == {"bfloat16"}


@pytest.mark.parametrize("sampler", [Sampler(), HOT])
def test_generation_goes_on_from_a_filled_cache(sampler: Sampler) -> None:
    lengths = np.array([2, 25, 1])
    tokens = np.zeros((3, 25), np.int32)
    whole = [*PROMPTS[:2], [77, 3]]
    for row, prompt in enumerate(whole):
        tokens[row, : lengths[row]] = prompt[: lengths[row]]
    rest = [prompt[length:] for prompt, length in zip(whole, lengths, strict=True)]
    # 15 more tokens of a prompt and 8 new ones, of which the last needs no place.
    cache = init_cache(TINY, 3, 25 + 15 + 8 - 1, np.float32)
    _, cache = prefill(MODEL.params, tokens, lengths, cache, TINY)
    steps = ids_of(Request(rest, 8, sampler, seed=4), cache)
    rows = [[token for step in steps for token in step[row]] for row in range(3)]
    expected = run(whole, max_new_tokens=8, sampler=sampler, seed=4)
    assert rows == [completion.tokens for completion in expected]


def test_a_cache_without_the_room_is_refused() -> None:
    cache = init_cache(TINY, 1, 20, np.float32)._replace(lengths=np.array([10], np.int32))
    check_request(Request([[1] * 5], 6), TINY, cache)
    with pytest.raises(ValueError, match="row 0 needs 21 cache slots and the cache has 20"):
        check_request(Request([[1] * 5], 7), TINY, cache)
    long = init_cache(TINY, 1, 1000, np.float32)._replace(lengths=np.array([500], np.int32))
    with pytest.raises(ValueError, match=r"5 tokens after 500 cached ones; .* at most 7"):
        check_request(Request([[1] * 5], 8), TINY, long)


def test_the_context_can_be_filled_to_the_last_slot() -> None:
    prompt = [3] * (TINY.max_seq_len - 4)
    assert len(run([prompt], max_new_tokens=4)[0].tokens) == 4
    assert len(run([prompt], max_new_tokens=None)[0].tokens) == 4
    with pytest.raises(ValueError, match="ask for at most 4"):
        run([prompt], max_new_tokens=5)


def test_no_recompilation_after_warm_up() -> None:
    lengths = np.random.default_rng(0).integers(1, 33, 200)
    run([[1] * 32], sampler=HOT, max_new_tokens=30)
    run([[1]], sampler=HOT, max_new_tokens=30)
    with count_compilations() as seen:
        for seed, length in enumerate(lengths):
            sampler = Sampler(temperature=1 + seed / 10, top_k=40 + seed, top_p=0.9)
            new, stop = 1 + seed % 30, [seed % TINY.vocab_size]
            run([[2] * int(length)], sampler=sampler, seed=seed, stop=stop, max_new_tokens=new)
    assert seen.count == 0


def test_a_stream_joins_to_the_completion_and_can_be_left() -> None:
    stream = stream_generate(MODEL, PROMPTS[0], max_new_tokens=200, stop=())
    next(stream)
    stream.close()
    pieces = list(stream_generate(MODEL, PROMPTS[0], max_new_tokens=200, stop=()))
    assert pieces[-1].completion is not None
    assert pieces[-1].completion.tokens == run(PROMPTS[:1], max_new_tokens=200)[0].tokens
    assert all(piece.completion is None for piece in pieces[:-1])


def test_generate_then_score_gives_the_same_logprobs() -> None:
    from jax_llama3.decoding.scoring import score_tokens

    completion = run([PROMPTS[1]], max_new_tokens=300)[0]
    scored = score_tokens(MODEL.params, PROMPTS[1] + completion.tokens, TINY)
    np.testing.assert_allclose(scored[39:], completion.logprobs, atol=1e-4)


REFUSED = {
    "no prompt": (lambda: run([]), "no prompt"),
    "empty prompt": (lambda: run([[1], []]), "prompt 1 is empty"),
    "long prompt": (lambda: run([[1] * 513]), "513 tokens and the model's context 512"),
    "id": (lambda: run([[101]]), "token id 101"),
    "max": (lambda: run([[1]], max_new_tokens=-1), "whole number, 0 or more, not -1"),
    "stop id": (lambda: run([[1]], stop=[101]), "token id 101"),
    "stops": (lambda: run([[1]], stop=range(65)), "65 stop ids"),
    "stop text": (lambda: run([[1]], stop=[""]), "stop text is empty"),
    "text": (lambda: run(["x"]), "no tokenizer"),
    "seed": (lambda: run([[1]], seed=2**32), "seed"),
    "stop text without a tokenizer": (lambda: run([[1]], stop="x"), "no tokenizer"),
    "score": (lambda: score(MODEL, "x"), "no tokenizer"),
}


def test_a_fractional_seed_is_refused() -> None:
    # Unwrapped: the tests' checker of types would refuse it first.
    refusing = inspect.unwrap(check_request)
    request = Request([[1]], 1)._replace(seed=1.5)
    with pytest.raises(ValueError, match=r"seed must be a whole number .* not 1\.5"):
        refusing(request, MODEL.config)


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_served_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_nan_weights_are_noticed() -> None:
    params = MODEL.params._replace(norm=MODEL.params.norm * np.float32("nan"))
    with pytest.raises(ValueError, match="NaN"):
        generate(MODEL._replace(params=params), PROMPTS[0], max_new_tokens=3, stop=())


def test_timings_leave_compilation_out() -> None:
    config = replace(TINY, norm_eps=7e-5)  # not compiled before
    start = time.perf_counter()
    completion = generate(MODEL._replace(config=config), PROMPTS[0], max_new_tokens=10, stop=())
    elapsed = time.perf_counter() - start
    assert 10 / completion.generation_tps < elapsed / 2
