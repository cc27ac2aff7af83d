"""A lesson's source: one jupytext file with both languages, and the notebooks it stands for.

Code cells stand once. A Markdown cell comes twice under one id, in English and in Chinese, and the
Chinese one names the English text that it translates by a hash. Comments in code are neighbouring
lines that begin with `# en:` and `# zh:`.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from nbformat import NotebookNode

from . import entry

LANGUAGES = ("en", "zh")
_MARK = re.compile(r"^(\s*)# (en|zh):(.*)$")
_CHINESE = re.compile(r'^# %% \[markdown\] id="([^"]*)" lang="zh".*$', re.MULTILINE)
_HAN = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”‘’…—]"
# What a line ends with, and the next begins with, where a break between them is to show no space. Next to
# stars it must be a letter: stars that touch both a letter and a mark mean no emphasis.
_LETTER = r"[\u4e00-\u9fff]"
_END = re.compile(rf"(?:{_HAN}|{_LETTER}\*+)$")
_BEGIN = re.compile(rf"\s*(?:{_HAN}|\*+{_LETTER})")
_HASH_LENGTH = 8


class Lesson(NamedTuple):
    """The cells of one source, in order, as jupytext reads them."""

    path: Path
    cells: list[NotebookNode]

    @property
    def name(self) -> str:
        return self.path.stem


def read_lesson(path: Path) -> Lesson:
    """Read and check one source; what is wrong raises ValueError with the cell's id."""
    cells = jupytext.read(path, fmt="py:percent").cells
    lesson = Lesson(path, cells)
    if problems := [*_pairs(cells), *_ids(cells), *_comments(cells)]:
        raise ValueError(f"{path.name}: " + "; ".join(problems))
    return lesson


def notebook(lesson: Lesson, language: str) -> NotebookNode:
    """The lesson in one language, not executed, with the cells that every lesson has."""
    cells = _localized_cells(lesson, language)
    titles = entry.titles(lesson.path.parent, language)
    links = entry.navigation(lesson.name, language, titles)
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    first = next(place for place, cell in enumerate(cells) if cell.cell_type == "code")
    cells.insert(first, entry.ready_cell(code, language))
    above = "\n\n".join(filter(None, [entry.badges(lesson.name, language), links]))
    cells.insert(0, nbformat.v4.new_markdown_cell(above, id="navigation"))
    cells.append(nbformat.v4.new_markdown_cell(links, id="navigation_below"))
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "title": titles[lesson.name],
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _localized_cells(lesson: Lesson, language: str) -> list[NotebookNode]:
    cells = []
    for cell in lesson.cells:
        tags = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        if cell.cell_type == "code":
            code = localized(cell.source, language).strip("\n")
            made = nbformat.v4.new_code_cell(code, metadata=tags)
            if "solution" in tags.get("tags", ()):
                made.metadata["jupyter"] = {"source_hidden": True}
        elif cell.metadata["lang"] == language:
            text = cell.source if language == "en" else _joined(cell.source)
            made = nbformat.v4.new_markdown_cell(text)
        else:
            continue
        made["id"] = cell.metadata["id"]
        cells.append(made)
    return cells


def localized(code: str, language: str) -> str:
    """Code with the comments of one language."""
    lines = []
    for line in code.split("\n"):
        mark = _MARK.match(line)
        if mark is None:
            lines.append(line)
        elif mark[2] == language:
            lines.append(f"{mark[1]}#{mark[3]}")
    return "\n".join(lines)


def _joined(text: str) -> str:
    """Chinese paragraphs as one line each: Markdown would show a break between characters as a space."""
    parts = re.split(r"(```.*?```|\$\$.*?\$\$)", text, flags=re.DOTALL)
    parts[::2] = map(_join_lines, parts[::2])
    return "".join(parts)


def _join_lines(text: str) -> str:
    """Lines of paragraphs and of lists' items joined where both sides are Chinese."""
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        heads_or_rows = before.startswith(("#", "|"))
        if not heads_or_rows and _END.search(before) and _BEGIN.match(line):
            lines[-1] += line.lstrip()
        else:
            lines.append(line)
    return "\n".join(lines)


def text_hash(text: str) -> str:
    """What a translation names its original by."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:_HASH_LENGTH]


def stamp(path: Path) -> int:
    """Write the hash of its English cell into every Chinese cell; the number of cells changed.

    To be called by whoever has read both texts again.
    """
    cells = jupytext.read(path, fmt="py:percent").cells
    hashes = {
        cell.metadata["id"]: text_hash(cell.source)
        for cell in cells
        if cell.metadata.get("lang") == "en"
    }
    changed = 0

    def stamped(match: re.Match) -> str:
        nonlocal changed
        line = f'# %% [markdown] id="{match[1]}" lang="zh" of="{hashes.get(match[1], "")}"'
        changed += line != match[0]
        return line

    path.write_text(_CHINESE.sub(stamped, path.read_text()))
    return changed


def _pairs(cells: list[NotebookNode]) -> list[str]:
    """Every Markdown cell in English must be followed by its Chinese one, of the same text."""
    problems = []
    open_id, open_hash = None, ""
    for cell in cells:
        name = cell.metadata.get("id", "")
        language = cell.metadata.get("lang") if cell.cell_type == "markdown" else None
        if open_id is not None and (language != "zh" or name != open_id):
            problems.append(f"{open_id} has no Chinese cell after it")
            open_id = None
        if language == "en":
            open_id, open_hash = name, text_hash(cell.source)
        elif language == "zh":
            if open_id is None:
                problems.append(f"{name} in Chinese has no English cell before it")
            elif cell.metadata.get("of") != open_hash:
                problems.append(f"{name}: the Chinese is not of this English text; see stamp")
            open_id = None
        elif cell.cell_type == "markdown":
            problems.append(f"{name or cell.source[:30]!r} says no language")
    return problems if open_id is None else [*problems, f"{open_id} has no Chinese cell"]


def _ids(cells: list[NotebookNode]) -> list[str]:
    names = [c.metadata.get("id") for c in cells if c.metadata.get("lang") != "zh"]
    names += ["ready", "navigation", "navigation_below"]  # cells that the build adds
    problems = [f"a cell has no id: {c.source[:40]!r}" for c in cells if not c.metadata.get("id")]
    twice = {name for name in names if names.count(name) > 1 and name}
    return problems + [f"the id {name} stands twice" for name in sorted(twice)]


def _comments(cells: list[NotebookNode]) -> list[str]:
    """Comments must come in both languages, English lines directly before Chinese ones."""
    problems = []
    for cell in cells:
        if cell.cell_type != "code":
            continue
        kinds = ""
        for line in cell.source.split("\n"):
            mark = _MARK.match(line)
            plain = mark is None and line.lstrip().startswith("# ")
            kinds += mark[2][0] if mark else ("#" if plain else ".")
        if "#" in kinds or not re.fullmatch(r"(\.|(?<!e)e+z+(?!e)|e+z+)*", kinds):
            problems.append(f"{cell.metadata.get('id')}: a comment lacks one of its languages")
    return problems
