"""Imports go one way, and importing the library does nothing."""

import ast
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from jax_llama3.garbage import uncollected

ROOT = Path(__file__).parent.parent
RANKS = {
    "config": 0,
    "tokenizer": 0,
    "command": 0,
    "garbage": 0,
    "compilation": 0,
    "manifest": 0,
    "allocator": 0,
    "progress": 0,
    "stream": 0,
    "chat": 1,
    "completion": 1,
    "params": 1,
    "rope": 1,
    "sample": 1,
    "kernel_code": -3,
    "tile_code": -3,
    "number_code": -2,
    "panel_code": -2,
    "matrix_kernel_code": -1,
    "row_kernel_code": -1,
    "attention_kernel_code": -1,
    "prompt_kernel_code": -1,
    "kernels": 0,
    "row_kernel": 1,
    "matrix_kernel": 1,
    "attention_kernel": 3,
    "prompt_kernel": 1,
    "folder": 1,
    "quantization": 2,
    "cache": 3,
    "attention": 4,
    "linear": 3,
    "model": 5,
    "shards": 2,
    "writer": 3,
    "checkpoint": 4,
    "generate": 6,
    "score": 6,
    "info": 7,
    "llama": 7,
    "bench": 7,
    "startup": 8,
    "first_token": 9,
    "bench_report": 8,
    "bench_command": 10,
    "ceilings": 4,
    "cost": 2,
    "peers": 1,
    "presets": 1,
    "__main__": 11,
    "__init__": 11,
}
# What the converter may know of the library: the contract, the format, and one-line errors.
CONVERT_MAY_IMPORT = {"config", "params", "checkpoint", "command"}


def imported(path: Path) -> set[str]:
    """Modules of jax_llama3 that a file imports, relatively or by name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.level == 1
            and path.parent.name == "jax_llama3"
        ):
            names |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax_llama3"):
            names.add((node.module or "").partition(".")[2] or "__init__")
        elif isinstance(node, ast.Import):
            names |= {a.name.partition(".")[2] for a in node.names if a.name[:10] == "jax_llama3"}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "jax_llama3").glob("*.py")), ids=lambda p: p.stem)
def test_a_module_imports_only_from_lower_ranks(path: Path) -> None:
    for name in imported(path):
        assert RANKS[name] < RANKS[path.stem], f"{path.stem} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "convert").glob("*.py")), ids=lambda p: p.stem)
def test_the_converter_knows_only_the_contract(path: Path) -> None:
    # To run our model beside another, one module needs the whole library.
    assert path.stem == "compare" or imported(path) <= CONVERT_MAY_IMPORT


def test_the_library_never_imports_the_converter_or_torch() -> None:
    for path in (ROOT / "jax_llama3").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] not in ("convert", "torch", "transformers", "gguf")


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
        with uncollected():
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
