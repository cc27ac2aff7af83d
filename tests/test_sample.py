"""Sampling against distributions small enough to know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

from jax_llama3 import Sampler, sample
from jax_llama3.decoding.sampling import active_settings, filter_logits

filtered = jax.jit(filter_logits)

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
LOGITS = jnp.log(PROBABILITIES)[None]


def kept(sampler: Sampler, logits: jax.Array = LOGITS) -> list[int]:
    return np.flatnonzero(np.isfinite(filtered(logits, active_settings(sampler))[0])).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [0]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 0.49}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.79}, [0, 1]),
        ({"top_p": 0.81}, [0, 1, 2]),
        ({"top_p": 1e-9}, [0]),
        ({"top_p": 1e-45}, [0]),
        ({"min_p": 0.29}, [0, 1, 2]),
        ({"min_p": 0.31}, [0, 1]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 2, "top_p": 0.62}, [0]),  # of the two that are left, .625 and .375
        ({"top_k": 2, "top_p": 0.63}, [0, 1]),
        (
            {"temperature": 2.0, "top_p": 0.5},
            [0, 1],
        ),  # the temperature comes first: .38 .30 .21 .12
    ],
)
def test_four_tokens(settings: dict, expected: list[int]) -> None:
    assert kept(Sampler(**{"temperature": 1.0, **settings})) == expected


def test_of_equals_the_lowest_id_is_likeliest() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    logits = jnp.array([[0.0, 2.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    assert sample(keys, logits, Sampler()).tolist() == [1, 0]


@pytest.mark.parametrize("size", [255, 256, 257, 1000])
@pytest.mark.parametrize("places", [[0], [254], [255], [200, 254], [250, 600, 999]])
def test_the_likeliest_of_a_long_vocabulary(size: int, places: list[int]) -> None:
    logits = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    logits[1, [place for place in places if place < size]] = 9.0
    keys = jax.random.split(jax.random.key(0), 2)
    found = sample(keys, jnp.asarray(logits), Sampler())
    np.testing.assert_array_equal(found, logits.argmax(axis=-1))


def test_logits_that_are_nan_or_minus_infinity_give_an_id_of_the_vocabulary() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    logits = jnp.array([[jnp.nan] * 300, [-jnp.inf] * 300])
    assert sample(keys, logits, Sampler()).tolist() == [299, 0]


def test_no_rows_give_no_tokens() -> None:
    keys = jax.random.split(jax.random.key(0), 0)
    assert sample(keys, jnp.ones((0, 300)), Sampler()).shape == (0,)


def test_zeros_of_both_signs_are_equal() -> None:
    assert kept(Sampler(temperature=1.0, top_k=1), jnp.array([[0.0, -0.0, -1.0]])) == [0, 1]


def test_equal_logits_at_the_border_of_top_p_keep_the_lower_ids() -> None:
    assert kept(Sampler(temperature=1.0, top_p=0.7), jnp.zeros((1, 5))) == [0, 1, 2, 3]


def test_draws_follow_the_distribution() -> None:
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    draws = np.asarray(sample(keys, jnp.tile(LOGITS, (n, 1)), Sampler(temperature=1.0)))
    frequencies = np.bincount(draws, minlength=4) / n
    # Four standard deviations of a binomial proportion
    assert (np.abs(frequencies - PROBABILITIES) < 4 * np.sqrt(PROBABILITIES / n)).all()


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    keys = jax.random.split(jax.random.key(1), 8)
    logits = normal(2, (8, 300)) * 3
    sampler = Sampler(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01)
    together = sample(keys, logits, sampler)
    alone = [int(sample(keys[i : i + 1], logits[i : i + 1], sampler)[0]) for i in range(8)]
    backwards = sample(keys[::-1], logits[::-1], sampler)[::-1]
    assert together.tolist() == alone == backwards.tolist()
    assert together.dtype == jnp.int32


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-30, 1e-45])
def test_no_temperature_is_too_small(temperature: float) -> None:
    logits = jnp.array([[5.0, 80.0, 90.0, 89.0]])
    assert sample(
        jax.random.split(jax.random.key(0), 1), logits, Sampler(temperature)
    ).tolist() == [2]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
    ],
)
def test_bad_settings_are_refused_by_name_and_value(settings: dict) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=name) as caught:
        Sampler(**settings)
    assert repr(value) in str(caught.value)
