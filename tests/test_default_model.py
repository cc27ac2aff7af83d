"""The default model gives the ids and probabilities that it has given before."""

import numpy as np
import pytest

from jax_llama3 import Model, apply_chat_template, forward, generate
from jax_llama3.model.ops import Ops


@pytest.mark.real
def test_golden_values(default_model: Model, ops: Ops | None) -> None:
    tokenizer = default_model.tokenizer
    ids = tokenizer.encode("The capital of France is", bos=True)
    assert ids == [504, 3575, 282, 4649, 314]
    logits, _ = forward(default_model.params, np.array([ids]), default_model.config, ops=ops)
    probabilities = np.exp(np.asarray(logits[0, -1]) - np.asarray(logits[0, -1]).max())
    probabilities /= probabilities.sum()
    assert probabilities.argmax() == 7042
    assert tokenizer.decode([7042]) == " Paris"
    assert probabilities[7042] == pytest.approx(0.773, abs=5e-4)
    chat = apply_chat_template(
        default_model, [{"role": "user", "content": "What is the capital of France?"}]
    )
    assert len(chat) == 37
    completion = generate(default_model, chat)
    assert completion.text == "The capital of France is Paris."
    assert completion.tokens[-1] == 2
    assert completion.finish_reason == "stop"
