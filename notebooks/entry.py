"""The cells that the build adds to every lesson: links to the other pages, and what readies a machine."""

import json
import re
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode

# Where the project is published, such as https://github.com/OWNER/NAME; "" while it is nowhere. From it
# come the badges, the links, which then are the web's, and what the first cell installs.
ADDRESS = ""
_BRANCH = "main"
_EXTRAS = {"torch": "convert", "transformers": "compare"}  # what brings a package that not all need
_IMPORT = re.compile(r"^\s*(?:import|from) (\w+)", re.MULTILINE)
_TITLE = re.compile(r"^# # (\d\d · .*)$", re.MULTILINE)

_WORDS = {
    "en": {
        "other": "中文",
        "index": "All lessons",
        "glossary": "Glossary",
        "ready": "This cell installs what the lesson needs if it is not here, as on a fresh Colab; else it does nothing.",
    },
    "zh": {
        "other": "English",
        "index": "全部课程",
        "glossary": "术语表",
        "ready": "缺少本课所需的软件时（例如在全新的 Colab 上），这个单元格会把它装好；否则什么也不做。",
    },
}


def extras(code: str) -> str:
    """The extras of the library that a lesson with this code needs, with commas between them."""
    imported = {*_IMPORT.findall(code)}
    return ",".join(["course", *(_EXTRAS[name] for name in sorted({*_EXTRAS} & imported))])


def ready_cell(code: str, language: str, address: str | None = None) -> NotebookNode:
    """The first code cell of a lesson with this code."""
    address = ADDRESS if address is None else address
    needed = extras(code)
    modules = ["jax_llama3_course", *sorted({*_EXTRAS} & {*_IMPORT.findall(code)})]
    package = f"jax_llama3[{needed}]" + (f" @ git+{address}" if address else "")
    source = f"""\
# {_WORDS[language]["ready"]}
import importlib.util
import subprocess
import sys

if not all(map(importlib.util.find_spec, {json.dumps(modules)})):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "{package}"]).returncode:
        raise SystemExit(
            "jax_llama3 could not be installed. Install it from its folder or its wheel, "
            "then run this cell again: pip install 'FOLDER_OR_WHEEL[{needed}]'"
        )
    importlib.invalidate_caches()"""
    hidden = {"jupyter": {"source_hidden": True}}
    return nbformat.v4.new_code_cell(source, id="ready", metadata=hidden)


def titles(folder: Path, language: str) -> dict[str, str]:
    """The name of every lesson's file, in order, and the lesson's title."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        title = None
        for text in path.read_text(encoding="utf-8").split("# %% ")[1:]:
            head, _, body = text.partition("\n")
            if head.startswith("[markdown]") and f'lang="{language}"' in head:
                title = _TITLE.search(body)
                break
        if title is None:
            raise ValueError(f"{path.name}: its first text in {language} has no title '# NN · ...'")
        found[path.stem] = title[1]
    return found


def link(text: str, path: str, language: str, address: str | None = None) -> str:
    """A link from a lesson to a path that is given as seen from the lesson."""
    address = ADDRESS if address is None else address
    if not address:
        return f"[{text}]({path})"
    parts = ["notebooks", language]
    for part in path.split("/"):
        parts = parts[:-1] if part == ".." else [*parts, part]
    return f"[{text}]({address}/blob/{_BRANCH}/{quote('/'.join(parts))})"


def badges(name: str, language: str, address: str | None = None) -> str:
    """Pictures that open a lesson in Colab, Kaggle and Binder; "" while the project is nowhere."""
    address = ADDRESS if address is None else address
    if not address:
        return ""
    owner_and_name = address.partition("github.com/")[2]
    path = f"notebooks/{language}/{name}.ipynb"
    page = f"{owner_and_name}/blob/{_BRANCH}/{path}"
    return " ".join(
        f"[![{where}]({picture})]({target})"
        for where, picture, target in (
            (
                "Open in Colab",
                "https://colab.research.google.com/assets/colab-badge.svg",
                f"https://colab.research.google.com/github/{page}",
            ),
            (
                "Open in Kaggle",
                "https://kaggle.com/static/images/open-in-kaggle.svg",
                f"https://kaggle.com/kernels/welcome?src=https://github.com/{page}",
            ),
            (
                "Open in Binder",
                "https://mybinder.org/badge_logo.svg",
                f"https://mybinder.org/v2/gh/{owner_and_name}/{_BRANCH}?urlpath=lab/tree/{path}",
            ),
        )
    )


def navigation(name: str, language: str, known: dict[str, str], address: str | None = None) -> str:
    """One line of links: the lessons before and after, the other language, the index, the glossary."""
    words, other = _WORDS[language], "zh" if language == "en" else "en"
    names = [*known]
    place = names.index(name)
    suffix = "" if language == "en" else ".zh"
    targets = [
        *((f"← {known[n]}", f"{n}.ipynb") for n in names[max(place - 1, 0) : place]),
        *((f"{known[n]} →", f"{n}.ipynb") for n in names[place + 1 : place + 2]),
        (words["other"], f"../{other}/{name}.ipynb"),
        (words["index"], f"../README{suffix}.md"),
        (words["glossary"], f"../GLOSSARY{suffix}.md"),
    ]
    return " | ".join(link(text, path, language, address) for text, path in targets)
