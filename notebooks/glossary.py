"""The course's terms as a page in each language, made from glossary.csv."""

import csv
from pathlib import Path
from typing import NamedTuple

from .entry import titles

_HEAD = {
    "en": "# Glossary\n\nEach term, its Chinese name, what it means, and the lesson that explains it. [中文](GLOSSARY.zh.md) | [All lessons](README.md)\n\n"
    "| Term | Chinese | Meaning | Lesson |\n|---|---|---|---|\n",
    "zh": "# 术语表\n\n每个术语、它的英文名、含义，以及讲解它的课。[English](GLOSSARY.md) | [全部课程](README.zh.md)\n\n"
    "| 术语 | 英文 | 含义 | 课 |\n|---|---|---|---|\n",
}


class Term(NamedTuple):
    """A row of glossary.csv."""

    english: str
    chinese: str
    lesson: str  # its number
    meaning_en: str
    meaning_zh: str


def terms(root: Path) -> list[Term]:
    """The rows of the table, in the order in which the lessons explain them."""
    with (root / "glossary.csv").open(encoding="utf-8") as file:
        return [Term(**row) for row in csv.DictReader(file)]


def page(root: Path, language: str) -> str:
    """The glossary in one language as Markdown, its terms in alphabetical order of the English ones."""
    known = {name[:2]: (name, title) for name, title in titles(root / "src", language).items()}
    rows = []
    for term in sorted(terms(root), key=lambda term: term.english.lower()):
        name, title = known[term.lesson]
        words = (
            (term.english, term.chinese, term.meaning_en)
            if language == "en"
            else (term.chinese, term.english, term.meaning_zh)
        )
        rows.append(f"| {' | '.join(words)} | [{title}]({language}/{name}.ipynb) |\n")
    return _HEAD[language] + "".join(rows)


def write(root: Path) -> None:
    """Write the page in both languages."""
    for language, suffix in (("en", ""), ("zh", ".zh")):
        (root / f"GLOSSARY{suffix}.md").write_text(page(root, language), encoding="utf-8")
