"""The way into the course: a machine made ready, links, badges, web pages, a copy to write in."""

import html.parser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

import notebooks.html
from notebooks import entry, glossary
from notebooks.build import ROOT
from notebooks.formulas import mathml
from notebooks.html import pages, render
from notebooks.lab import copy_lessons
from notebooks.source import LANGUAGES, notebook, read_lesson

ADDRESS = "https://github.com/owner/name"
SOURCES = sorted((ROOT / "src").glob("*.py"))
_LINK = re.compile(r"(?<!!)\[((?:!\[[^]]*\]\([^)]*\)|[^]])*)\]\(([^)]*)\)")


def links(text: str) -> list[str]:
    return [target for _, target in _LINK.findall(text)]


def added(path: Path, language: str) -> dict[str, str]:
    """The cells that the build adds to a lesson."""
    cells = notebook(read_lesson(path), language).cells
    names = ("navigation", "ready", "navigation_below")
    return {cell["id"]: cell.source for cell in cells if cell["id"] in names}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_lesson_leads_to_its_neighbours_the_other_language_and_the_glossary(
    language: str,
) -> None:
    for place, path in enumerate(SOURCES):
        cells = added(path, language)
        assert cells["navigation"] == cells["navigation_below"]  # no badges: there is no address
        found = [(ROOT / language / target).resolve() for target in links(cells["navigation"])]
        assert all(target.is_file() for target in found), found
        around = SOURCES[max(place - 1, 0) : place] + SOURCES[place + 1 : place + 2]
        expected = [ROOT / language / f"{each.stem}.ipynb" for each in around]
        expected.append(ROOT / ("zh" if language == "en" else "en") / f"{path.stem}.ipynb")
        assert found[: len(expected)] == expected
        suffix = "" if language == "en" else ".zh"
        assert found[len(expected) :] == [ROOT / f"{n}{suffix}.md" for n in ("README", "GLOSSARY")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_with_an_address_every_badge_and_link_is_one_of_the_web(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "ADDRESS", ADDRESS)
    root = ROOT.parent
    for path in SOURCES:
        cells = added(path, language)
        assert (
            f"jax_llama3[course{cells['ready'].partition('[course')[2].partition(']')[0]}]"
            in (cells["ready"])
        )
        assert f" @ git+{ADDRESS}" in cells["ready"]
        for text in cells["navigation"], cells["navigation_below"]:
            for target in links(text):
                parts = urlsplit(target)
                assert parts.scheme == "https"
                assert " " not in target
                if parts.netloc == "github.com":
                    name = unquote(parts.path).removeprefix("/owner/name/blob/main/")
                    assert (root / name).is_file(), target
        badges, _, _ = cells["navigation"].partition("\n\n")
        lesson = f"notebooks/{language}/{path.stem}.ipynb"
        assert links(badges) == [
            f"https://colab.research.google.com/github/owner/name/blob/main/{lesson}",
            f"https://kaggle.com/kernels/welcome?src={ADDRESS}/blob/main/{lesson}",
            f"https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/{lesson}",
        ]
        assert len(re.findall(r"!\[[^]]+\]\(https://[^)]+\)", badges)) == 3


_LINE = {
    "en": r"\*Reading time (\d+) minutes\. Before it: (.*?)\. What it proves: (.*?)\.\*",
    "zh": r"\*阅读时间 (\d+) 分钟。前置：(.*?)。本课证明：(.*?)。\*",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_index_says_of_a_lesson_what_the_lesson_says(language: str) -> None:
    index = (ROOT / ("README.md" if language == "en" else "README.zh.md")).read_text()
    titles = entry.titles(ROOT / "src", language)
    for path in SOURCES:
        cells = notebook(read_lesson(path), language).cells
        text = next(cell.source for cell in cells if cell["id"] == "title")
        line = re.search(_LINE[language], " ".join(text.split("\n")))
        assert line, path.stem
        number, _, title = titles[path.stem].partition(" · ")
        row = (
            f"| {number} | [{title}]({language}/{path.stem}.ipynb) | {' | '.join(line.groups())} |"
        )
        assert row in index, row


def run_ready(path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> list[list[str]]:
    """What the first cell of a lesson runs on a machine that has nothing."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        calls.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(added(path, "en")["ready"], {})
    return calls


NEEDED = {"00": "course", "02": "course,convert", "08": "course,convert,compare"}


@pytest.mark.parametrize(("lesson", "extras"), NEEDED.items(), ids=NEEDED.keys())
def test_the_first_cell_installs_what_the_lesson_needs(
    lesson: str, extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (path for path in SOURCES if path.stem.startswith(lesson))
    (call,) = run_ready(path, monkeypatch, 0)
    assert call[:4] == [sys.executable, "-m", "pip", "install"]
    assert call[-1] == f"jax_llama3[{extras}]"


def test_the_first_cell_says_how_to_install_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"pip install 'FOLDER_OR_WHEEL\[course\]'"):
        run_ready(SOURCES[0], monkeypatch, 1)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_first_cell_does_nothing_where_all_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code = added(path, "zh")["ready"]
    if "transformers" in code and find_spec("transformers") is None:
        pytest.skip("transformers is not here")
    monkeypatch.setattr(subprocess, "run", None)
    exec(code, {})
    assert capsys.readouterr() == ("", "")


class Page(html.parser.HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()
        self.pictures_without_words = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.names.add(str(values["id"]))
        if tag == "a":
            self.targets.append(str(values["href"]))
        self.pictures_without_words += tag == "img" and not values.get("alt")


def read_pages(folder: Path) -> Iterator[tuple[Path, str]]:
    found = sorted(folder.rglob("*.html"))
    assert len(found) == 2 * (len(SOURCES) + 2)
    for path in found:
        yield path, path.read_text(encoding="utf-8")


def test_every_link_of_the_pages_resolves(tmp_path: Path) -> None:
    notebooks.html.write(tmp_path)
    pages = {path: Page(text) for path, text in read_pages(tmp_path)}
    inner = 0
    for path, page in pages.items():
        assert not page.pictures_without_words, path
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https"):
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert other in pages, f"{path.name} links to {target}"
            assert not parts.fragment or unquote(parts.fragment) in pages[other].names, (
                f"{path.name} links to {target}"
            )
            inner += 1
    assert inner > 500


def test_pages_have_titles_of_their_own_and_formulas_that_are_no_source(tmp_path: Path) -> None:
    notebooks.html.write(tmp_path)
    titles = []
    for path, text in read_pages(tmp_path):
        (title,) = re.findall(r"<title>(.*?)</title>", text)
        (description,) = re.findall(r'<meta name="description" content="(.*?)">', text)
        assert len(description) > 20
        assert f'<html lang="{"zh" if "zh" in str(path.relative_to(tmp_path)) else "en"}">' in text
        titles.append(title)
        prose = re.sub(r"<(pre|code|math)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert "$" not in prose.partition("<body>")[2], path
        assert "**" not in prose.partition("<body>")[2], path
    assert len(set(titles)) == len(titles)


def test_a_copy_is_never_written_again(tmp_path: Path) -> None:
    copied, kept = copy_lessons(tmp_path / "mine")
    assert len(copied) == 2 * (len(SOURCES) + 2)
    assert not kept
    mine = tmp_path / "mine" / "en" / f"{SOURCES[0].stem}.ipynb"
    mine.write_text("what a reader wrote")
    gone = tmp_path / "mine" / "zh" / f"{SOURCES[1].stem}.ipynb"
    gone.unlink()
    copied, kept = copy_lessons(tmp_path / "mine")
    assert copied == [gone]
    assert mine in kept
    assert mine.read_text() == "what a reader wrote"
    assert nbformat.read(gone, as_version=4).cells


def test_the_glossary_is_the_one_of_the_table() -> None:
    for language, suffix in (("en", ""), ("zh", ".zh")):
        assert (ROOT / f"GLOSSARY{suffix}.md").read_text() == glossary.page(ROOT, language)
    assert all(term.meaning_en and term.meaning_zh for term in glossary.terms(ROOT))


@pytest.mark.parametrize(
    ("formula", "made"),
    [
        ("131{,}072", "<mn>131,072</mn>"),
        (r"\max(a, 0)", '<mo lspace="0.167em" rspace="0">max</mo><mo stretchy="false">&#x00028;'),
        (r"\log u", '<mo lspace="0.167em" rspace="0.167em">log</mo><mi>u</mi>'),
        ("f(-a)", '<mo form="prefix" lspace="0" rspace="0">&#x02212;</mo><mi>a</mi>'),
        ("a-b", "<mi>a</mi><mo>&#x02212;</mo><mi>b</mi>"),
        ("|a|", '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo><mi>a</mi>'),
        (r"\mathrm{i}", '<mi mathvariant="normal">i</mi>'),
    ],
)
def test_a_formula_is_spaced_as_on_paper(formula: str, made: str) -> None:
    assert made in mathml(formula, {"display_mode": False})


def test_no_line_ends_between_a_formula_and_its_punctuation() -> None:
    known, joined = pages(), 0
    for path in known:
        text = render(path, known)
        joined += text.count('<span class="line">')
        # A formula that punctuation follows stands in such a span, with at most a bracket before it.
        pattern = r'(.{19})<span class="math inline">(?:(?!</span>).)*</span>[.,;，。；、]'
        before = re.findall(pattern, text, re.DOTALL)
        assert all('<span class="line">'.endswith(each.rstrip("(（“")[-8:]) for each in before)
    assert joined > 100
