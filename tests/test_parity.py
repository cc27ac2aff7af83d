"""Float32 logits equal those of transformers and of Meta's own model, everywhere on a grid of random models."""

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deferred import deferred
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("llama_models")
from checkpoints import meta_tensors
from meta_reference import join_world, meta_logits, meta_model
from random_models import ATOL, LLAMA_3_1, LLAMA_3_2, TINY, replace, sharp_params
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers_reference import transformers_config, transformers_logits, transformers_model

from convert.baselines.pytorch import cache_argument
from jax_llama3 import Config, Params, RopeScaling, decode, forward, init_cache, prefill
from jax_llama3.model.ops import Ops
from jax_llama3.model.rope import rope_frequencies

pytestmark = pytest.mark.reference

# The original context is 64 positions in some, so that sequences run beyond it; in others it is
# that of the published models.
FACTORS: dict[str, dict[str, Any]] = {
    "heads": {
        "MHA": (4, 4),
        "G=2": (4, 2),
        "G=3": (6, 2),
        "G=8": (16, 2),
        "MQA": (5, 1),
        "one head": (1, 1),
    },
    "scaling": {
        "unscaled": None,
        "8 of 64": RopeScaling(8.0, 1.0, 4.0, 64),
        "32 of 64": RopeScaling(32.0, 1.0, 4.0, 64),
        "8 of 8192": RopeScaling(8.0, 1.0, 4.0, 8192),
        "32 of 8192": RopeScaling(32.0, 1.0, 4.0, 8192),
        "5 of 50": RopeScaling(5.0, 1.5, 3.0, 50),
    },
    "shape": {
        f"B={batch} T={length}": (batch, length)
        for batch, length in ((1, 1), (2, 2), (4, 17), (3, 65), (4, 130), (1, 300))
    },
    "theta": {"1e4": 1e4, "5e5": 5e5},
    "eps": {"1e-5": 1e-5, "1e-6": 1e-6},
    "sizes": {"2 layers": (101, 88, 2), "odd sizes": (53, 37, 3)},
    "tied": {"untied": False, "tied": True},
}
HEAD_DIMS = {"H=D/N": (16, 16), "wide": (24, 13), "narrow": (6, 15)}  # H, and D / N


class Case(NamedTuple):
    """A model and the shape of its input."""

    config: Config
    batch: int
    length: int


def pairwise() -> list[dict[str, str]]:
    """Few choices in which every pair of values of two factors stands at least once."""
    rng = random.Random(0)
    missing = {
        ((one, a), (two, b))
        for one, two in itertools.combinations(FACTORS, 2)
        for a in FACTORS[one]
        for b in FACTORS[two]
    }
    choices = []
    while missing:
        first = dict(min(missing))
        trials = [
            {name: rng.choice(list(values)) for name, values in FACTORS.items()} | first
            for _ in range(100)
        ]
        best = max(trials, key=lambda t: len(missing & {*itertools.combinations(t.items(), 2)}))
        missing -= {*itertools.combinations(best.items(), 2)}
        choices.append(best)
    return choices


def each_once() -> list[dict[str, str]]:
    """Fewer choices still: every value stands in one of them."""
    return [
        {
            name: list(values)[(index + shift) % len(values)]
            for shift, (name, values) in enumerate(FACTORS.items())
        }
        for index in range(max(map(len, FACTORS.values())))
    ]


def case(head_dim: int, width: int, choice: dict[str, str]) -> Case:
    values = {name: FACTORS[name][value] for name, value in choice.items()}
    n_heads, n_kv_heads = values["heads"]
    vocab_size, ffn_dim, n_layers = values["sizes"]
    config = replace(
        TINY,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        dim=width * n_heads,
        vocab_size=vocab_size,
        ffn_dim=ffn_dim,
        n_layers=n_layers,
        rope_scaling=values["scaling"],
        rope_theta=values["theta"],
        norm_eps=values["eps"],
        tie_embeddings=values["tied"],
    )
    return Case(config, *values["shape"])


# Meta's model knows only heads that share D evenly, so of these there is every pair.
GRID = {
    ", ".join([name, *choice.values()]): case(*HEAD_DIMS[name], choice)
    for name, choices in zip(HEAD_DIMS, (pairwise(), each_once(), each_once()), strict=True)
    for choice in choices
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    join_world(0, 1, tmp_path_factory.mktemp("gloo") / "store")
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Every case compiles programs of its own, which would fill gigabytes in the end."""
    yield
    jax.clear_caches()


Agree = Callable[[str, Any, np.ndarray], None]


@pytest.fixture
def agree(record_property: Callable[[str, object], None]) -> Agree:
    """Asserts that logits are equal within the tolerance; the worst difference is told at the end."""

    def check(reference: str, ours: Any, expected: np.ndarray) -> None:
        assert ours.shape == expected.shape
        difference = float(np.abs(np.asarray(ours) - expected).max())
        record_property(f"logits against {reference}", float(difference))
        assert difference <= ATOL, reference  # so is NaN refused

    return check


jitted = jax.jit(forward, static_argnames=("config", "ops"))


@partial(jax.jit, static_argnames=("config", "ops"))
def whole(
    params: Params, tokens: np.ndarray, config: Config, ops: Ops | None
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Logits, and each layer's scores: their count, and their variance."""
    spreads = []

    def tap(name: str, array: jax.Array) -> jax.Array:
        if name.endswith("scores"):
            seen = jnp.isfinite(array)
            spreads.append((seen.sum(), jnp.var(array, where=seen)))
        return array

    return forward(params, tokens, config, tap=tap, ops=ops)[0], spreads


def references(params: Params, model: Case, tokens: np.ndarray) -> dict[str, np.ndarray]:
    config = model.config
    found = {"transformers": transformers_logits(transformers_model(params, config), tokens)}
    if config.dim == config.n_heads * config.head_dim:
        theirs = meta_model(meta_tensors(params, config), config, *tokens.shape)
        found["Meta's model"] = meta_logits(theirs, tokens)
    return found


def cached(
    params: Params, model: Case, tokens: np.ndarray, ops: Ops | None
) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """Two ragged prefills and decoding to the end; yields each row's position and its logits."""
    config, batch, length = model
    rows = np.arange(batch)
    steps = min(2, length - 1)
    ready = np.maximum(length - steps - rows, 1)  # tokens of each row before decoding
    first = np.maximum(ready // 2, 1)
    cache = init_cache(config, batch, length + 3, np.float32)
    at = np.zeros(batch, int)
    for new in (first, ready - first):
        if new.min() > 0:
            # What stands behind a row's own tokens is padding, and anything.
            index = np.minimum(at[:, None] + np.arange(new.max()), length - 1)
            logits, cache = prefill(
                params, tokens[rows[:, None], index], new, cache, config, ops=ops
            )
            at = at + new
            yield at - 1, logits
    while at.max() < length:
        logits, cache = decode(params, tokens[rows, at], cache, config, ops=ops)
        at = at + 1
        yield at - 1, logits


def check(
    model: Case, agree: Agree, ops: Ops | None
) -> tuple[np.ndarray, list[tuple[jax.Array, jax.Array]]]:
    params = sharp_params(model.length, model.config)
    rng = np.random.default_rng(model.length)
    tokens = rng.integers(0, model.config.vocab_size, (model.batch, model.length), np.int32)
    logits, spreads = whole(params, tokens, model.config, ops=ops)
    theirs = references(params, model, tokens)
    for name, expected in theirs.items():
        agree(f"{name}, forward", logits, expected)
    for positions, part in cached(params, model, tokens, ops=ops):
        for name, expected in theirs.items():
            agree(f"{name}, cached", part, expected[np.arange(model.batch), positions])
    return np.asarray(logits), spreads


@pytest.mark.usefixtures("world")
@pytest.mark.slow
@pytest.mark.quickly
@pytest.mark.parametrize("model", GRID.values(), ids=GRID.keys())
def test_both_references_agree_on_the_grid(model: Case, agree: Agree, ops: Ops | None) -> None:
    logits, spreads = check(model, agree, ops=ops)
    # The tolerance means something: logits vary by about 1, and no head looks everywhere alike.
    if logits.size > 1000:
        assert 0.5 < logits.std() < 3
    for count, variance in spreads:
        if count > 1000:
            assert 0.8 < variance**0.5 < 5


THETA_3 = replace(TINY, dim=6 * 16, rope_theta=5e5)
FAMILY = {
    "Llama 3": Case(replace(THETA_3, rope_scaling=None), 2, 130),
    "Llama 3.1": Case(replace(THETA_3, rope_scaling=LLAMA_3_1), 2, 130),
    "Llama 3.2": Case(replace(THETA_3, rope_scaling=LLAMA_3_2, tie_embeddings=True), 2, 130),
    "SmolLM2": Case(
        replace(
            TINY,
            n_heads=9,
            n_kv_heads=3,
            dim=9 * 16,
            rope_theta=1e5,
            rope_scaling=None,
            tie_embeddings=True,
        ),
        3,
        65,
    ),
}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("model", FAMILY.values(), ids=FAMILY.keys())
def test_the_family_in_miniature(model: Case, agree: Agree, ops: Ops | None) -> None:
    check(model, agree, ops=ops)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n_kv_heads, head_dim = draw(st.integers(1, 3)), 2 * draw(st.integers(2, 12))
    n_heads = n_kv_heads * draw(st.integers(1, 8))
    low = draw(st.floats(0.5, 2))
    scaling = RopeScaling(
        draw(st.floats(1, 64)), low, low + draw(st.floats(0.1, 5)), draw(st.integers(8, 9000))
    )
    config = Config(
        vocab_size=draw(st.integers(2, 200)),
        dim=n_heads * draw(st.sampled_from([head_dim, head_dim, 17, 20])),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=draw(st.integers(1, 120)),
        norm_eps=10 ** draw(st.floats(-6, -4)),
        rope_theta=10 ** draw(st.floats(1, 7)),
        rope_scaling=draw(st.sampled_from([None, scaling])),
        max_seq_len=512,
        tie_embeddings=draw(st.booleans()),
    )
    return Case(config, draw(st.integers(1, 4)), draw(st.integers(1, 150)))


@pytest.mark.usefixtures("world")
# Not shrunk: a failure is told soon, and a case is small as it is.
@deferred
@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(model=cases())
def test_both_references_agree_on_any_model(model: Case, agree: Agree, ops: Ops | None) -> None:
    check(model, agree, ops=ops)


PUBLISHED = [
    (128, None),
    (128, RopeScaling(8.0, 1.0, 4.0, 8192)),
    (64, RopeScaling(32.0, 1.0, 4.0, 8192)),
    (128, RopeScaling(32.0, 1.0, 4.0, 8192)),
]


@pytest.mark.parametrize(("head_dim", "scaling"), PUBLISHED)
def test_the_frequencies_of_the_published_models_are_transformers_to_the_bit(
    head_dim: int, scaling: RopeScaling | None
) -> None:
    config = replace(TINY, head_dim=head_dim, rope_theta=500000.0, rope_scaling=scaling)
    theirs = LlamaRotaryEmbedding(transformers_config(config)).inv_freq.numpy()
    np.testing.assert_array_equal(rope_frequencies(config), theirs)


@deferred
def test_logits_beyond_8192_positions_of_a_published_scaling(ops: Ops | None) -> None:
    config = replace(
        TINY,
        n_heads=2,
        n_kv_heads=1,
        head_dim=64,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        max_seq_len=131072,
    )
    params = sharp_params(1, config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 9 * 1024), np.int32)
    model = transformers_model(params, config)
    ours = init_cache(config, 1, tokens.size, np.float32)
    theirs = {cache_argument(model): DynamicCache(config=model.config)}  # filled in place
    for start in range(0, tokens.size, 1024):
        chunk = tokens[:, start : start + 1024]
        logits, ours = jitted(params, chunk, config, ours, ops=ops)
        with torch.inference_mode():
            result = model(torch.tensor(chunk, dtype=torch.int64), **theirs)
        assert np.abs(logits - result.logits.numpy()).max() <= ATOL


WRONG = {
    "theta": {"rope_theta": 50000.0},
    "no scaling": {"rope_scaling": None},
    "factor 8 for 32": {"rope_scaling": LLAMA_3_1},
    "eps": {"norm_eps": 1e-4},
    "eps 1e-6 for 1e-5": {"norm_eps": 1e-6},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_config_fails_parity(change: dict, ops: Ops | None) -> None:
    config = replace(TINY, rope_scaling=LLAMA_3_2)
    params = sharp_params(1, config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 300), np.int32)
    expected = transformers_logits(transformers_model(params, config), tokens)
    wrong, _ = whole(params, tokens, replace(config, **change), ops=ops)
    assert np.abs(np.asarray(wrong) - expected).max() > 10 * ATOL
