"""Choosing the next token: small pure functions on logits, in the order transformers applies them."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

Settings = dict[str, Any]  # numbers by their names in Sampler, or traced numbers inside jit
_BLOCK = 256  # tokens of the vocabulary


@dataclass(frozen=True)
class Sampler:
    """How to choose: temperature 0 takes the likeliest token, the other defaults switch a filter off.

    Bad values raise ValueError.
    """

    temperature: float | int = 0.0
    top_k: int = 0
    top_p: float | int = 1.0
    min_p: float | int = 0.0
    repetition_penalty: float | int = 1.0

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        whole = isinstance(self.top_k, Integral) and not isinstance(self.top_k, bool)
        _require("top_k", self.top_k, whole and self.top_k >= 0, "a whole number, 0 or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        _require("repetition_penalty", penalty, 0 < penalty < math.inf, "above 0")


def sample(
    keys: Key[Array, " B"], logits: Float[Array, "B V"], sampler: Sampler
) -> Int[Array, " B"]:
    """One token per row, int32; every row draws from its own key, so a batch changes nothing.

    The repetition penalty is not applied here: it needs the row's history (`penalize`).
    """
    return _choose_tokens(keys, logits, active_settings(sampler))


def active_settings(sampler: Sampler) -> Settings:
    """The settings that are switched on, for jit: their names are static, their values are not.

    A program compiled for one temperature then serves all, and a filter that is off costs nothing.
    """
    active: Settings = {}
    if sampler.repetition_penalty != 1:
        active["repetition_penalty"] = float(sampler.repetition_penalty)
    if sampler.temperature == 0:
        return active
    active["temperature"] = float(sampler.temperature)
    if sampler.top_k:
        active["top_k"] = min(int(sampler.top_k), 2**31 - 1)
    if sampler.top_p < 1:
        active["top_p"] = float(sampler.top_p)
    if sampler.min_p > 0:
        active["min_p"] = float(sampler.min_p)
    return active


def choose_tokens(
    keys: Key[Array, " B"] | None, logits: Float[Array, "B V"], settings: Settings
) -> Int[Array, " B"]:
    """`sample` with settings as `active_settings` gives them; keys are needed where a temperature is."""
    if "temperature" not in settings:
        return _likeliest(logits)
    assert keys is not None
    logits = filter_logits(logits, settings)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _likeliest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """argmax, the lowest id of equals: first the block of the vocabulary, then the place in it.

    These are plain reductions, which XLA's CPU backend vectorises, and only a maximum reads all logits.
    """
    batch, size = logits.shape
    count = -(-size // _BLOCK)
    padding = ((0, 0), (0, count * _BLOCK - size))
    blocks = jnp.pad(logits, padding, constant_values=-jnp.inf)
    blocks = blocks.reshape(batch, count, _BLOCK)
    block = _first_largest(jnp.max(blocks, axis=-1))
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return jnp.minimum(block * _BLOCK + _first_largest(inside), size - 1)


def _first_largest(x: Float[Array, "B size"]) -> Int[Array, " B"]:
    # After the barrier the maxima that went in are computed only once.
    x = lax.optimization_barrier(x)
    best = jnp.max(x, axis=-1, keepdims=True)
    ids = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    last = x.shape[-1] - 1  # where nothing equals a maximum that is NaN
    return jnp.min(jnp.where(x == best, ids, last), axis=-1)


_choose_tokens = jax.jit(choose_tokens)


def filter_logits(logits: Float[Array, "B V"], settings: Settings) -> Float[Array, "B V"]:
    """Divide by the temperature, then put -inf in place of what the filters take out."""
    # Shifted first, so that a tiny temperature cannot overflow to several equal infinities.
    shifted = logits.astype(jnp.float32) - jnp.max(logits, axis=-1, keepdims=True)
    logits = shifted / jnp.maximum(settings["temperature"], jnp.finfo(jnp.float32).tiny)
    if "top_k" in settings:
        logits = _keep_top_k(logits, settings["top_k"])
    if "top_p" in settings:
        logits = _keep_top_p(logits, settings["top_p"])
    if "min_p" in settings:
        # p >= min_p * max(p), with both sides' common normaliser divided out; the maximum is 0.
        logits = jnp.where(logits >= jnp.log(settings["min_p"]), logits, -jnp.inf)
    return logits


def _keep_top_k(logits: Float[Array, "B V"], top_k: Any) -> Float[Array, "B V"]:
    """Keep the top_k largest, and what equals the last of them."""
    keys = _sortable(logits)
    threshold = _threshold(keys, jnp.ones_like(logits), top_k)
    return jnp.where(keys >= threshold, logits, -jnp.inf)


def _keep_top_p(logits: Float[Array, "B V"], top_p: Any) -> Float[Array, "B V"]:
    """Keep the likeliest tokens up to and with the one that carries their sum to top_p (1904.09751).

    For probabilities .5 .3 .15 .05 and top_p .6 the sums before each are 0 .5 .8 .95: two are kept.
    Among equals at the threshold the lower ids are kept.
    """
    keys, probabilities = _sortable(logits), jax.nn.softmax(logits, axis=-1)
    threshold = _threshold(keys, probabilities, top_p)
    above, equal = keys > threshold, keys == threshold
    mass = jnp.sum(jnp.where(above, probabilities, 0), axis=-1, keepdims=True)
    each = jnp.max(jnp.where(equal, probabilities, 0), axis=-1, keepdims=True)
    places = jnp.maximum(jnp.ceil((top_p - mass) / each), 1).astype(jnp.int32)
    order = jnp.cumsum(equal, axis=-1, dtype=jnp.int32)
    return jnp.where(above | (equal & (order <= places)), logits, -jnp.inf)


def _sortable(x: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """int32 keys in the order of the floats: the bits themselves, flipped below zero."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)  # -0 equals 0
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _threshold(
    keys: Int[Array, "B V"], weights: Float[Array, "B V"], limit: Any
) -> Int[Array, "B 1"]:
    """The smallest key whose larger keys weigh less than `limit` together.

    32 halvings of the integers find it exactly; XLA's sort on CPU takes thirty times as long.
    """

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        weight = jnp.sum(jnp.where(keys > middle, weights, 0), axis=-1, keepdims=True)
        enough = weight < limit
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # A limit that underflows would keep nothing.
    limit = jnp.maximum(jnp.asarray(limit, jnp.float32), jnp.finfo(jnp.float32).tiny)
    shape = (*keys.shape[:-1], 1)
    ends = jnp.iinfo(jnp.int32)
    bounds = (jnp.full(shape, ends.min, jnp.int32), jnp.full(shape, ends.max, jnp.int32))
    return lax.fori_loop(0, 32, halve, bounds)[1]


def penalize(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Any
) -> Float[Array, "B V"]:
    """Make tokens already seen less likely (arXiv:1909.05858): positive logits over penalty, others times it."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def _require(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {rule}, not {value!r}")
