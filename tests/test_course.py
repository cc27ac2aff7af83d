"""The course: two languages from one source, committed as built, every lesson able to fail."""

import ast
import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from compiling import QUICKLY

from convert.fetch.models import fetch
from jax_llama3.runtime.compilation import TORN
from jax_llama3.runtime.home import default_folder
from notebooks.build import build
from notebooks.outputs import settle
from notebooks.source import LANGUAGES, localized, notebook, read_lesson, stamp, text_hash

ROOT = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted((ROOT / "src").glob("*.py"))
# Lessons that compile many small programs and compute little: they are done sooner if XLA optimises less.
COMPILED_QUICKLY = ("00", "01", "02", "03", "04", "05", "06", "15")
COUNTED = ("assert", "close(", "trace(", "assert_allclose(", "assert_array_equal(")
each_lesson = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def committed(path: Path, language: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / language / f"{path.stem}.ipynb", as_version=4)


def code_cells(path: Path) -> dict[str, str]:
    cells = read_lesson(path).cells
    return {c.metadata["id"]: c.source for c in cells if c.cell_type == "code"}


def test_lessons_are_numbered_and_built_in_both_languages() -> None:
    assert [path.stem[:3] for path in SOURCES] == [f"{n:02}_" for n in range(len(SOURCES))]
    for language in LANGUAGES:
        built = sorted(path.stem for path in (ROOT / language).glob("*.ipynb"))
        assert built == [path.stem for path in SOURCES]


@each_lesson
def test_what_is_committed_is_what_the_source_says(path: Path) -> None:
    lesson = read_lesson(path)
    for language in LANGUAGES:
        made, found = notebook(lesson, language), committed(path, language)
        assert [(c["id"], c.cell_type, c.source) for c in found.cells] == [
            (c["id"], c.cell_type, c.source) for c in made.cells
        ]


@each_lesson
def test_code_and_outputs_are_equal_in_both_languages(path: Path) -> None:
    english, chinese = (committed(path, language).cells for language in LANGUAGES)
    for ours, theirs in zip(english, chinese, strict=True):
        if ours.cell_type == "code":
            assert ast.dump(ast.parse(ours.source)) == ast.dump(ast.parse(theirs.source))
            assert len(ours.outputs) == len(theirs.outputs)
            for left, right in zip(ours.outputs, theirs.outputs, strict=True):
                assert left.get("text") == right.get("text")
                assert left.get("data") == right.get("data")
        else:
            assert re.search(r"[\u4e00-\u9fff]", theirs.source), theirs["id"]


@each_lesson
def test_a_lesson_has_asserts_exercises_and_alt_texts(path: Path) -> None:
    code = code_cells(path)
    assert sum(text.count(word) for text in code.values() for word in COUNTED) >= 8
    names = [name for name in code if re.fullmatch(r"(exercise|solution)_\d", name)]
    assert names == [f"{kind}_{n}" for n in (1, 2, 3) for kind in ("exercise", "solution")]
    for language in LANGUAGES:
        for cell in committed(path, language).cells:
            for output in cell.get("outputs", ()):
                assert output.output_type in ("stream", "display_data", "execute_result")
                if "image/png" in output.get("data", {}):
                    alt = output.metadata["image/png"]["alt"]
                    assert len(alt) > 20
                    assert bool(re.search(r"[\u4e00-\u9fff]", alt)) == (language == "zh")
                    assert base64.b64decode(output.data["image/png"])[:4] == b"\x89PNG"


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """A reader's: one device. What one lesson compiles the next finds, which changes only the time."""
    fetch("smollm2-135m-instruct")
    return {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "MPLBACKEND": "agg",
        "JAX_COMPILATION_CACHE_DIR": str(default_folder("compiled-by-tests")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONWARNINGS": f"ignore:{TORN}",
    }


def compiled(path: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment with what XLA is told for a lesson."""
    quickly = path.stem.startswith(COMPILED_QUICKLY)
    return {**environment, "XLA_FLAGS": QUICKLY} if quickly else environment


def glossary() -> list[dict[str, str]]:
    with (ROOT / "glossary.csv").open() as file:
        return list(csv.DictReader(file))


def prose(path: Path, language: str) -> list[tuple[str, str]]:
    """Ids and texts of a lesson's Markdown cells without code and formulas."""
    cells = [c for c in read_lesson(path).cells if c.metadata.get("lang") == language]
    pattern = r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|^#+ .*?$"
    flags = re.DOTALL | re.MULTILINE
    texts = {c.metadata["id"]: re.sub(pattern, " ", c.source, flags=flags) for c in cells}
    between = " " if language == "en" else ""  # a term may be broken over two lines
    return [(name, re.sub(r"\n\s*", between, text)) for name, text in texts.items()]


def _stands(pattern: str, text: str) -> bool:
    """Whether a term stands in a text by itself."""
    named = "?P<this>" in pattern
    found = re.finditer(pattern, text, re.IGNORECASE)
    return any(match["this"] is not None if named else True for match in found)


@pytest.mark.parametrize("language", LANGUAGES)
def test_terms_are_explained_where_they_first_stand(language: str) -> None:
    cells = [(path.stem[:2], *cell) for path in SOURCES for cell in prose(path, language)]
    problems = []
    column = "english" if language == "en" else "chinese"
    terms = [row[column] for row in glossary()]
    for row in glossary():
        term = re.escape(row[column])
        pattern = rf"\b{term}(s|es)?\b" if language == "en" else term
        # A longer term that holds this one is another term.
        longer = [other for other in terms if row[column] in other and other != row[column]]
        if longer and language == "zh":
            pattern = "|".join(map(re.escape, longer)) + f"|(?P<this>{pattern})"
        found = [each for each in cells if _stands(pattern, each[2])]
        if not found:
            problems.append(f"{term}: nowhere")
            continue
        lesson, name, text = found[0]
        bold = re.findall(r"\*\*([^*]+)\*\*", text)
        if lesson != row["lesson"]:
            problems.append(f"{term}: first in {lesson}:{name}, explained in {row['lesson']}")
        elif not any(_stands(pattern, each) for each in bold):
            problems.append(f"{term}: not bold where it first stands, {lesson}:{name}")
    assert not problems, "\n".join(problems)


def test_the_table_of_the_course_names_cells_that_exist() -> None:
    cells = {
        f"{path.stem[:2]}:{cell.metadata['id']}"
        for path in SOURCES
        for cell in read_lesson(path).cells
    }
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text()
        named = re.findall(r"`(\d\d:\w+)`", text)
        assert len(named) > 80
        assert len(named) == len(re.findall(r"`\d\d:", text))  # none is misspelt
        assert set(named) <= cells, sorted(set(named) - cells)
    tables = [
        re.findall(r"`(\d\d:\w+)`", (ROOT / name).read_text())
        for name in ("README.md", "README.zh.md")
    ]
    assert tables[0] == tables[1]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.reference
@each_lesson
def test_rebuilding_a_lesson_changes_nothing(
    path: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    for language in LANGUAGES:
        (tmp_path / language).mkdir()
        shutil.copy(ROOT / language / f"{path.stem}.ipynb", tmp_path / language)
    build(path, tmp_path, compiled(path, environment))
    for language in LANGUAGES:
        name = f"{language}/{path.stem}.ipynb"
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), name


def faults() -> dict[str, list[dict[str, str]]]:
    """The rows of the table, by lesson."""
    found: dict[str, list[dict[str, str]]] = {}
    with (ROOT.parent / "tests" / "lesson_faults.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["lesson"], []).append(row)
    return found


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("lesson", faults())
def test_every_fault_in_the_hand_made_code_fails_the_lesson(
    lesson: str, environment: dict[str, str]
) -> None:
    (path,) = (path for path in SOURCES if path.stem.startswith(lesson))
    code = "\n".join(code_cells(path).values())
    rows = faults()[lesson]
    for row in rows:
        assert code.count(row["old"]) == 1, f"{row['fault']}: {row['old']!r} is not there once"
    done = subprocess.run(
        [sys.executable, ROOT.parent / "tests" / "faulty_lesson.py"],
        input=json.dumps({"code": code, "faults": [(row["old"], row["new"]) for row in rows]}),
        cwd=ROOT / "en",
        env=compiled(path, environment),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    endings = dict(zip((row["fault"] for row in rows), json.loads(done.stdout), strict=True))
    assert set(endings.values()) == {"AssertionError"}, f"{endings}\n{done.stderr[-2000:]}"


SOURCE = """# %% [markdown] id="a" lang="en"
# Text
# %% [markdown] id="a" lang="zh" of="HASH"
# 文本
# %% id="b"
# en: why
# zh: 原因
x = 1
"""


def write_source(folder: Path, text: str) -> Path:
    path = folder / "00_test.py"
    path.write_text(text.replace("HASH", text_hash("Text")))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# Text", "# Other text", "a: the Chinese is not of this English text"),
        ('# %% [markdown] id="a" lang="zh" of="HASH"\n# 文本\n', "", "a has no Chinese cell"),
        ('# %% [markdown] id="a" lang="en"\n# Text\n', "", "a in Chinese has no English cell"),
        ("# zh: 原因\n", "", "b: a comment lacks one of its languages"),
        ("# en: why\n", "", "b: a comment lacks one of its languages"),
        ("x = 1", "# note\nx = 1", "b: a comment lacks one of its languages"),
        ('id="b"', 'id="a"', "the id a stands twice"),
        (' id="b"', "", "a cell has no id"),
        (' lang="en"', "", "says no language"),
    ],
)
def test_a_source_that_is_out_of_step_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert len(read_lesson(write_source(tmp_path, SOURCE)).cells) == 3
    with pytest.raises(ValueError, match=message):
        read_lesson(write_source(tmp_path, SOURCE.replace(old, new, 1)))


def test_stamping_says_that_a_translation_was_read_again(tmp_path: Path) -> None:
    path = write_source(tmp_path, SOURCE.replace("# Text", "# Other text"))
    assert stamp(path) == 1
    read_lesson(path)
    assert stamp(path) == 0


def test_a_break_between_chinese_characters_is_no_space(tmp_path: Path) -> None:
    chinese = """# # 00 · 文本
#
# - 一行
#   接着
#   **重点**。
#   然后 `x`
#   再说**强调**
#   完
#
# | 表 |
# |---|
# | 一 |"""
    source = SOURCE.replace("# 文本", chinese).replace("# Text", "# # 00 · Text")
    path = write_source(tmp_path, source)
    stamp(path)
    (made,) = (c.source for c in notebook(read_lesson(path), "zh").cells if c["id"] == "a")
    table = "| 表 |\n|---|\n| 一 |"
    assert made == f"# 00 · 文本\n\n- 一行接着**重点**。然后 `x`\n  再说**强调**完\n\n{table}"


def test_comments_come_in_one_language() -> None:
    code = "# en: one\n# zh: 一\nif x:\n    # en: two\n    # zh: 二\n    y = '# en: kept'"
    assert localized(code, "en") == "# one\nif x:\n    # two\n    y = '# en: kept'"
    assert localized(code, "zh") == "# 一\nif x:\n    # 二\n    y = '# en: kept'"


def test_outputs_are_kept_only_if_they_say_the_same() -> None:
    def cell(text: str, source: str = "f()", tags: tuple[str, ...] = ()) -> nbformat.NotebookNode:
        output = nbformat.v4.new_output("stream", text=text)
        return nbformat.v4.new_code_cell(source, outputs=[output], metadata={"tags": list(tags)})

    def settled(new: nbformat.NotebookNode, old: nbformat.NotebookNode) -> str:
        settle(new, old)
        return new.outputs[0].text

    assert settled(cell("p = 0.77314"), cell("p = 0.77311")) == "p = 0.77311"
    assert settled(cell("p = 0.779"), cell("p = 0.773")) == "p = 0.779"
    assert settled(cell("[1.25  2.5]"), cell("[1.2501 2.5]")) == "[1.2501 2.5]"
    assert settled(cell("id 505"), cell("id 504")) == "id 505"
    assert settled(cell("Paris 0.5"), cell("Rome 0.5")) == "Paris 0.5"
    assert settled(cell("1.5 s", tags=("measured",)), cell("9.9 s")) == "9.9 s"
    assert settled(cell("1.5 s", "g()", ("measured",)), cell("9.9 s")) == "1.5 s"
