"""The filters and the penalty of sampling against transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deferred import deferred
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from jax_llama3 import Sampler
from jax_llama3.decoding.sampling import active_settings, filter_logits, penalize

pytestmark = pytest.mark.reference
filtered = jax.jit(filter_logits)


@deferred
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.3, 2.0, 10.0]),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 7, 200, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.02]),
    min_p=st.sampled_from([0.0, 0.05, 0.6]),
)
def test_filters_keep_what_transformers_keeps(
    seed: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).standard_normal((2, 200)).astype(np.float32) * spread
    scores = transformers.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k:
        scores = transformers.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = transformers.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = transformers.MinPLogitsWarper(min_p)(None, scores)
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = filtered(jnp.asarray(logits), active_settings(sampler))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(scores.numpy()))
    np.testing.assert_allclose(jax.nn.softmax(ours), scores.softmax(-1).numpy(), atol=1e-5)


def test_penalty_equals_transformers() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32)
    history = [3, 3, 17, 40]
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([history]), torch.tensor(logits)
    )
    seen = np.zeros((1, 50), bool)
    seen[0, history] = True
    ours = penalize(jnp.asarray(logits), jnp.asarray(seen), 1.3)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)
