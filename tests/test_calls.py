"""Calls under other settings of JAX than its default ones, and on folders as people have them."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np
import pytest
from compiling import QUICKLY
from random_models import TINY, sharp_params

from jax_llama3 import Model, Sampler, generate, load, save, score

MODEL = Model(TINY, sharp_params(7, TINY), None)
PROMPTS = [[5, 9, 2], [77]]
SAMPLERS = {
    "greedy": Sampler(),
    "all filters": Sampler(temperature=1.5, top_k=60, top_p=0.95, min_p=0.01),
    "penalty": Sampler(repetition_penalty=1.5),
    "penalty and temperature": Sampler(temperature=0.7, repetition_penalty=1.2),
}
SETTINGS = {
    "debug_nans": lambda: jax.debug_nans(True),
    "enable_x64": lambda: jax.enable_x64(True),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_jax_change_no_token(setting: str, sampler: Sampler) -> None:
    expected = generate(MODEL, PROMPTS, max_new_tokens=4, sampler=sampler)
    context: AbstractContextManager = SETTINGS[setting]()
    with context:
        found = generate(MODEL, PROMPTS, max_new_tokens=4, sampler=sampler)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_jax_change_no_score(setting: str) -> None:
    expected = score(MODEL, PROMPTS[0]).logprobs
    with SETTINGS[setting]():
        found = score(MODEL, PROMPTS[0]).logprobs
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-4)


UNJITTED = """
import jax
from random_models import TINY, sharp_params
from jax_llama3 import Model, Sampler, generate, score
from jax_llama3.runtime.compilation import keep_compilations
from jax_llama3.runtime.home import default_folder

keep_compilations(default_folder("compiled-by-tests"))
model = Model(TINY, sharp_params(7, TINY), None)
for sampler in (Sampler(temperature=1.5, top_k=60, top_p=0.95), Sampler(repetition_penalty=1.5)):
    options = {"max_new_tokens": 2, "sampler": sampler}
    expected = generate(model, [[5, 9, 2], [77]], **options)
    with jax.disable_jit():
        found = generate(model, [[5, 9, 2], [77]], **options)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
expected = score(model, [5, 9, 2]).logprobs
with jax.disable_jit():
    found = score(model, [5, 9, 2]).logprobs
assert all(abs(a - b) < 1e-4 for a, b in zip(found[1:], expected[1:], strict=True))
"""


@pytest.mark.slow
def test_without_jit_the_tokens_are_the_same() -> None:
    # In a process of its own: what jit would have made an array of JAX's the checker of types sees.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Thousands of programs of one operation each, which there is nothing to optimise in.
    environment["XLA_FLAGS"] = QUICKLY
    subprocess.run([sys.executable, "-c", UNJITTED], check=True, env=environment)


def test_a_folder_that_is_read_only_and_has_spaces_in_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "tiny – 小 model"
    folder.parent.mkdir()
    save(folder, MODEL)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path in (*folder.iterdir(), folder, folder.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        model = load(folder)
        assert generate(model, PROMPTS[0], max_new_tokens=2) is not None
    finally:
        folder.parent.chmod(0o755)
        folder.chmod(0o755)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
