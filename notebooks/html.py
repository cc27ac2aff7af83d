"""The course as web pages: python -m notebooks.html [FOLDER].

The pages need no server, no script and no network: formulas are MathML, pictures stand in the page.
"""

import argparse
import html
import re
import sys
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from . import entry
from .build import ROOT
from .formulas import mathml
from .source import LANGUAGES

_COURSE = {"en": "Llama 3 by hand in JAX", "zh": "用 JAX 手写 Llama 3"}
_OUTLINE = {"en": "On this page", "zh": "本页内容"}
_FOLDED = {
    "en": {"solution": "Solution", "ready": "Make this machine ready"},
    "zh": {"solution": "解答", "ready": "准备运行环境"},
}
_LINK = re.compile(r'<a href="([^"]*)">(.*?)</a>', re.DOTALL)
_CELL = re.compile(r"<code>(\d\d):(\w+)</code>")
_HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)</h2>', re.DOTALL)
# A formula and the punctuation that touches it: no line begins or ends between them.
_TOUCHING = re.compile(
    r'([(（“]?)(<span class="math inline">.*?</span>)([.,;:!?)）”。，、；：！？]*)', re.DOTALL
)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_DESCRIPTION = 300  # characters of a page's first paragraph that search engines are given


_MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
_MARKDOWN.use(dollarmath_plugin, renderer=mathml, double_inline=True)
_MARKDOWN.use(anchors_plugin, min_level=2, max_level=3, slug_func=lambda text: _slug(text))


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def _style() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    return (
        (Path(__file__).parent / "page.css")
        .read_text(encoding="utf-8")
        .replace("/* light code */", light)
        .replace("/* dark code */", dark)
    )


def _page(title: str, body: str, language: str, *, course: bool = True) -> str:
    """A whole page; its outline are the second headings of its body."""
    headings = _HEADING.findall(body)
    items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in headings)
    outline = f"<nav class=outline><h2>{_OUTLINE[language]}</h2><ol>{items}</ol></nav>"
    first = re.search(r"<p>(?!<em>|<a|<img)(.*?)</p>", body, re.DOTALL)
    words = html.unescape(re.sub(r"<[^>]*>|\s+", " ", first[1] if first else title)).split()
    description = html.escape(" ".join(words)[:_DESCRIPTION])
    name = f"{title} | {_COURSE[language]}" if course else title
    return f"""<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="{description}">
<title>{html.escape(name)}</title>
<style>
{_style()}</style>
</head>
<body>
{outline if headings else ""}
<main>
{_TABLE.sub(lambda table: f'<div class="wide">{table[0]}</div>', body)}
</main>
</body>
</html>
"""


def _prose(text: str) -> str:
    """Markdown as HTML: formulas on one line with their punctuation, quoted spaces with their mark."""

    def joined(match: re.Match) -> str:
        before, formula, after = match.groups()
        return f'<span class="line">{match[0]}</span>' if before or after else formula

    return _TOUCHING.sub(joined, _MARKDOWN.render(text)).replace("“ ", "“\N{NO-BREAK SPACE}")


def _relink(body: str, page: Path, known: dict[Path, Path]) -> str:
    """Links to the course's files as links to its pages; others as text, or to the web."""

    def relinked(match: re.Match) -> str:
        target, text = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        source = (page.parent / path).resolve()
        if source in known:
            made = Path(*[".."] * (len(known[page.resolve()].parts) - 1)) / known[source]
            return f'<a href="{made.as_posix()}{"#" + anchor if anchor else ""}">{text}</a>'
        if entry.ADDRESS and source.is_relative_to(ROOT.parent):
            where = source.relative_to(ROOT.parent).as_posix()
            return f'<a href="{entry.ADDRESS}/blob/main/{where}">{text}</a>'
        return text

    return _LINK.sub(relinked, body)


def _link_cells(body: str, language: str, lessons: list[str]) -> str:
    """The names of cells, such as 04:scale_code, as links to them."""
    files = {name[:2]: name for name in lessons}

    def linked(match: re.Match) -> str:
        if match[1] not in files:
            return match[0]
        return f'<a href="{language}/{files[match[1]]}.html#{match[2]}">{match[0]}</a>'

    return _CELL.sub(linked, body)


def _code(source: str) -> str:
    return highlight(source, PythonLexer(), HtmlFormatter(cssclass="code"))


def _output(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return f"<pre class=output>{html.escape(output.text)}</pre>"
    data = output.data
    if "image/png" in data:
        words = output.metadata.get("image/png", {})
        width = f' width="{words["width"]}"' if "width" in words else ""
        alt = html.escape(words.get("alt", ""))
        source = f"data:image/png;base64,{data['image/png']}"
        return f'<div class="picture"><img alt="{alt}"{width} src="{source}"></div>'
    return f"<pre class=output>{html.escape(data.get('text/plain', ''))}</pre>"


def _cell(cell: NotebookNode, language: str) -> str:
    if cell.cell_type == "markdown":
        return f'<section id="{cell["id"]}">\n{_prose(cell.source)}</section>'
    body = _code(cell.source) + "".join(map(_output, cell.outputs))
    folded = "ready" if cell["id"] == "ready" else "solution"
    if folded == "ready" or "solution" in cell.metadata.get("tags", ()):
        words = _FOLDED[language][folded]
        body = f"<details><summary>{words}</summary>\n{body}</details>"
    return f'<section id="{cell["id"]}">\n{body}</section>'


def pages(root: Path = ROOT) -> dict[Path, Path]:
    """The course's files, and the page that each becomes, as seen from the folder of all pages."""
    made = {}
    for language in LANGUAGES:
        suffix = "" if language == "en" else ".zh"
        made[root / f"README{suffix}.md"] = Path(f"index{suffix}.html")
        made[root / f"GLOSSARY{suffix}.md"] = Path(f"glossary{suffix}.html")
        for path in sorted((root / language).glob("*.ipynb")):
            made[path] = Path(language) / f"{path.stem}.html"
    return {path.resolve(): page for path, page in made.items()}


def render(path: Path, known: dict[Path, Path]) -> str:
    """One of the course's files as a page."""
    if path.suffix == ".md":
        language = "zh" if path.stem.endswith(".zh") else "en"
        text = path.read_text(encoding="utf-8")
        lessons = [each.stem for each in known if each.parent.name == language]
        body = _link_cells(_prose(text), language, lessons)
        title = _COURSE[language] if path.stem.startswith("README") else _first_title(text)
        course = title != _COURSE[language]
    else:
        language = path.parent.name
        book = nbformat.read(path, as_version=4)
        body = "\n".join(_cell(cell, language) for cell in book.cells)
        title, course = book.metadata["title"], True
    return _page(title, _relink(body, path, known), language, course=course)


def _first_title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def write(folder: Path, root: Path = ROOT) -> list[Path]:
    """Write every page of the course into a folder; the files written."""
    known = pages(root)
    written = []
    for path, page in known.items():
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(path, known), encoding="utf-8")
        written.append(target)
    return written


def main() -> int:
    """Write the pages and say where they begin; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.html", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "html")
    folder = parser.parse_args().folder
    try:
        written = write(folder)
    except ModuleNotFoundError as error:
        print(f"error: {error}; pip install 'jax_llama3[course]'", file=sys.stderr)
        return 1
    print(f"{len(written)} pages; begin with {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
