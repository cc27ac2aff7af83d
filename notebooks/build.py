"""Build the course: python -m notebooks.build [LESSON ...] [--stamp | --texts | --anew].

Each source in notebooks/src is executed once; notebooks/en and notebooks/zh get the same outputs. An
output that only noise has changed stays as it was, unless --anew is given.
"""

import argparse
import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from . import glossary
from .outputs import clean, settle
from .source import LANGUAGES, notebook, read_lesson, stamp

ROOT = Path(__file__).parent
_SECONDS = 600  # for one cell, on a slow machine


def sources(names: list[str]) -> list[Path]:
    """The sources of the lessons whose names begin with one of these; of all if there are none."""
    paths = sorted((ROOT / "src").glob("*.py"))
    chosen = [path for path in paths if not names or path.stem.startswith(tuple(names))]
    if not chosen:
        raise ValueError(f"no lesson is called {' or '.join(names)}; see {ROOT / 'src'}")
    return chosen


def build(
    path: Path,
    target: Path = ROOT,
    environment: dict[str, str] | None = None,
    *,
    anew: bool = False,
) -> float:
    """Execute one lesson and write it in both languages; the seconds that it took.

    Outputs of the last build that say the same are kept, unless all are to be made anew.
    """
    lesson = read_lesson(path)
    start = time.perf_counter()
    executed = execute(notebook(lesson, "en"), environment)
    seconds = time.perf_counter() - start
    for language in LANGUAGES:
        made = notebook(lesson, language)
        file = target / language / f"{lesson.name}.ipynb"
        committed = {}
        if file.exists() and not anew:
            committed = {cell["id"]: cell for cell in nbformat.read(file, as_version=4).cells}
        code = {cell["id"]: cell for cell in executed.cells if cell.cell_type == "code"}
        for count, cell in enumerate((c for c in made.cells if c.cell_type == "code"), 1):
            cell.execution_count = count
            cell.outputs = clean(code[cell["id"]], language)
            settle(cell, committed.get(cell["id"]))
        nbformat.validate(made)
        file.parent.mkdir(exist_ok=True)
        nbformat.write(made, file)
    return seconds


def write_texts(path: Path, target: Path = ROOT) -> None:
    """Write one lesson with the outputs that it has; code that has changed raises ValueError."""
    lesson = read_lesson(path)
    for language in LANGUAGES:
        file = target / language / f"{lesson.name}.ipynb"
        found = nbformat.read(file, as_version=4).cells if file.exists() else []
        committed = {cell["id"]: cell for cell in found if cell.cell_type == "code"}
        made = notebook(lesson, language)
        for cell in (each for each in made.cells if each.cell_type == "code"):
            old = committed.get(cell["id"])
            if old is None or ast.dump(ast.parse(old.source)) != ast.dump(ast.parse(cell.source)):
                raise ValueError(f"{file.name}: the code of {cell['id']} has changed; build it")
            cell.execution_count, cell.outputs = old.execution_count, old.outputs
        nbformat.validate(made)
        nbformat.write(made, file)


def execute(book: NotebookNode, environment: dict[str, str] | None = None) -> NotebookNode:
    """Run all cells in the folder that readers open them in."""
    folder = ROOT / "en"
    folder.mkdir(exist_ok=True)
    options: dict = {"timeout": _SECONDS, "resources": {"metadata": {"path": str(folder)}}}
    client = NotebookClient(book, **options)
    try:
        # What cells write is in the notebook; the kernel's own log is not wanted.
        return client.execute(stderr=subprocess.DEVNULL, env=environment or dict(os.environ))
    except CellExecutionError as error:
        line = " ".join(str(error.evalue).split())
        failed = next(c["id"] for c in book.cells if _failed(c))
        raise ValueError(f"cell {failed}: {error.ename}: {line}") from None


def _failed(cell: NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", ()))


def main() -> int:
    """Build the lessons named, or all; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=__doc__)
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="for example 05; default: all")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--stamp", action="store_true", help="the Chinese has been read again; build nothing"
    )
    mode.add_argument(
        "--texts", action="store_true", help="only texts have changed: execute nothing"
    )
    mode.add_argument(
        "--anew", action="store_true", help="keep no output: pictures or measures have changed"
    )
    options = parser.parse_args()
    try:
        for path in sources(options.lessons):
            if options.stamp:
                print(f"{path.stem}: {stamp(path)} cells stamped")
            elif options.texts:
                write_texts(path)
                print(f"{path.stem}: texts written")
            else:
                print(f"{path.stem}: ", end="", flush=True)
                print(f"{build(path, anew=options.anew):.1f} s", flush=True)
        if not options.stamp:
            glossary.write(ROOT)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
