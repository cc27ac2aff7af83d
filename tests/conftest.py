"""What every test runs under: checked shapes, strict promotion, two CPU devices, no leaked tracers."""

import os
from importlib.util import find_spec

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["HF_HUB_OFFLINE"] = "1"
# The processes of tests share the cores. With threads of their own, numpy and torch of one wait
# actively for those of the other, and a test takes three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("jax_llama3", "beartype.beartype")

import jax
import pytest
from compiling import QUICKLY
from deferred import later

from convert.fetch.models import fetch
from jax_llama3 import Model, load
from jax_llama3.kernels.cpu.ops import NUMBA, XLA
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.ops import PLAIN, Ops
from jax_llama3.runtime.compilation import keep_compilations
from jax_llama3.runtime.home import default_folder

# What one test compiles the others find, those of other processes too.
keep_compilations(default_folder("compiled-by-tests"))
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compile-quickly", action="store_true", help="let XLA optimise less")


def pytest_configure(config: pytest.Config) -> None:
    """The flags are read when the first program is compiled, by the processes of tests as well."""
    if config.getoption("--compile-quickly"):
        os.environ["XLA_FLAGS"] += f" {QUICKLY}"


@pytest.fixture(scope="session")
def default_model() -> Model:
    """The default model in float32, fetched if this machine does not have it yet."""
    return load(fetch("smollm2-135m-instruct"))


@pytest.fixture(scope="session", params=[later("plain"), "fast"])
def ops(request: pytest.FixtureRequest) -> Ops | None:
    """The operations that logits are computed with: the plain ones, or those chosen for this machine.

    `make test` computes with those alone that are chosen.
    """
    return PLAIN if request.param == "plain" else None


@pytest.fixture(scope="session", params=[later("plain"), later("xla"), "numba"])
def form(request: pytest.FixtureRequest) -> Ops:
    """Every form that the operations have on a CPU."""
    if request.param == "numba" and not has_kernels():
        pytest.skip("no numba")
    return {"plain": PLAIN, "xla": XLA, "numba": NUMBA}[request.param]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without the references there is nothing to compare with."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing and item.get_closest_marker("reference"):
        pytest.skip(f"needs {' and '.join(missing)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The worst of every figure that tests recorded with record_property."""
    worst: dict[str, tuple[float, str, int]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                figure, where, count = worst.get(name, (-1.0, "", 0))
                larger = (value, report.nodeid) if value > figure else (figure, where)
                worst[name] = (*larger, count + 1)
    if worst:
        terminalreporter.section("worst figures")
    for name, (figure, where, count) in sorted(worst.items()):
        terminalreporter.write_line(f"{name}: {figure:.2e} of {count}, in {where}")
