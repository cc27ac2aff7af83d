"""The rooms import one way, are small enough to read, and importing the library does nothing."""

import ast
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import jax_llama3
from jax_llama3.runtime.garbage import collection_paused

ROOT = Path(__file__).parent.parent
# A room imports only from those above it. `bench` times processes, so it stands below `startup`.
ROOMS = (
    "runtime text model kernels checkpoint decoding api startup research bench cli __init__ __main__"
).split()
# What the converter may know of the library: the contract, the folder on disk, and what says errors.
CONVERT_MAY_IMPORT = (
    "jax_llama3.model.config",
    "jax_llama3.model.params",
    "jax_llama3.model.quantization",
    "jax_llama3.checkpoint",
    "jax_llama3.text",
    "jax_llama3.runtime",
    "jax_llama3.cli.errors",
)
_MOST_LINES, _MOST_CORE_LINES, _MOST_FUNCTION_LINES = 300, 1200, 55


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 20, f"{package} has moved"
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """The full name of every module that a file imports, in its functions too."""
    package = module_name(path) if path.stem == "__init__" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = ROOT.joinpath(*name.split("."), alias.name)
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                yield f"{name}.{alias.name}" if is_module else name


def room(module: str) -> str:
    """The folder of the library that a module stands in, or its own name beside the folders."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def graph() -> dict[str, set[str]]:
    """The modules of the library, and which others each imports."""
    return {
        module_name(path): {n for n in imported(path) if n.partition(".")[0] == "jax_llama3"}
        for path in sources("jax_llama3")
    }


def test_every_room_has_its_place() -> None:
    assert {room(module) for module in graph()} <= {*ROOMS}


@pytest.mark.parametrize("module", graph())
def test_a_room_imports_only_from_rooms_above_it(module: str) -> None:
    for name in graph()[module]:
        above = ROOMS.index(room(name)) <= ROOMS.index(room(module))
        assert above or module == "jax_llama3", f"{module} imports {name}"


def test_modules_import_each_other_without_a_circle() -> None:
    order = list(TopologicalSorter(graph()).static_order())
    assert order.index("jax_llama3.model.config") < order.index("jax_llama3.model.network")


def test_the_core_imports_no_other_room_and_no_platform() -> None:
    core = [path for path in sources("jax_llama3") if path.parent.name == "model"]
    assert len(core) > 8
    for path in core:
        outside = {n for n in imported(path) if not n.startswith("jax_llama3.model")}
        assert not {n for n in outside if n.startswith("jax_llama3")}, path
        assert {n.partition(".")[0] for n in outside} <= {
            *sys.stdlib_module_names,
            "jax",
            "jaxtyping",
            "numpy",
        }, path
        assert "platform_dependent" not in path.read_text()
    assert sum(path.read_text().count("\n") for path in core) <= _MOST_CORE_LINES


@pytest.mark.parametrize("package", ["jax_llama3", "convert"])
def test_files_and_functions_can_be_read_at_once(package: str) -> None:
    for path in sources(package):
        text = path.read_text()
        assert text.count("\n") <= _MOST_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= _MOST_FUNCTION_LINES, f"{path}: {node.name}"


def test_no_public_function_has_the_name_of_a_module() -> None:
    modules = {part for module in graph() for part in module.split(".")[1:]}
    assert not modules & {*jax_llama3.__all__}


@pytest.mark.parametrize("path", sources("convert"), ids=module_name)
def test_the_converter_knows_only_the_contract(path: Path) -> None:
    if path.parent.name == "compare":  # to run our model beside another it needs the whole library
        return
    for name in imported(path):
        if name.partition(".")[0] == "jax_llama3":
            assert name.startswith(CONVERT_MAY_IMPORT), f"{path} imports {name}"


@pytest.mark.parametrize("path", sources("jax_llama3"), ids=module_name)
def test_the_library_never_imports_the_converter_or_torch(path: Path) -> None:
    names = {name.partition(".")[0] for name in imported(path)}
    assert not names & {"convert", "torch", "transformers", "gguf"}


IMPORT = """
import sys
opened = []
def audit(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])
import jax  # what JAX itself does is not ours
sys.addaudithook(audit)
import jax_llama3
from jax._src import xla_bridge
code = (".py", ".pyc", ".so", ".pyi")
# Packages look up each other's versions as they are imported.
known = (*code, ".dist-info/METADATA", ".zip")
files = [p for p in opened if not p.endswith(known) and "__pycache__" not in p]
assert not files, files
assert not xla_bridge.backends_are_initialized()
for name in ("torch", "transformers", "tokenizers", "tiktoken", "jinja2", "gguf", "convert", "numba"):
    assert name not in sys.modules, name
"""


def test_importing_opens_no_file_touches_no_device_and_loads_no_torch() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], check=True, cwd="/")


COLLECTING = """
import gc, sys
import jax
gc.collect()
if sys.argv[1] == "disabled":
    gc.disable()
if sys.argv[1] == "frozen":
    gc.freeze()
before = gc.isenabled(), gc.get_freeze_count() > 0
import jax_llama3
assert (gc.isenabled(), gc.get_freeze_count() > 0) == before
class Node: pass
node = Node()
node.itself = node
import weakref
seen = weakref.ref(node)
del node
gc.collect()
assert seen() is None
"""


@pytest.mark.parametrize("state", ["enabled", "disabled", "frozen"])
def test_importing_leaves_the_collection_of_garbage_as_it_was(state: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", COLLECTING, state], check=True, cwd="/")


def test_garbage_is_not_looked_for_inside_the_block_alone() -> None:
    class Node:
        pass

    gc.unfreeze()  # what other tests froze
    seen = []

    def fail() -> None:
        with collection_paused():
            assert not gc.isenabled()
            node = Node()
            node.itself = node
            seen.append(weakref.ref(node))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()
    assert any(each is seen[0]() for each in gc.get_objects(generation=2))
    gc.collect()
    assert seen[0]() is None
