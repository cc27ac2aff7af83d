"""Open a copy of the course in JupyterLab: python -m notebooks.lab [FOLDER].

What the reader wrote there is theirs: a file that is in the folder already is never written again.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from .build import ROOT
from .source import LANGUAGES

DEFAULT = Path("my_course")


def copy_lessons(folder: Path, root: Path = ROOT) -> tuple[list[Path], list[Path]]:
    """Copy the lessons that the folder lacks; the files copied, and those that are there already."""
    copied, kept = [], []
    pages = [*root.glob("*.md"), *(p for each in LANGUAGES for p in (root / each).glob("*.ipynb"))]
    for path in sorted(pages):
        target = folder / path.relative_to(root)
        if target.exists():
            kept.append(target)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        copied.append(target)
    return copied, kept


def main() -> int:
    """Copy, say what was copied, and start JupyterLab; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.lab", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--copy-only", action="store_true", help="do not start JupyterLab")
    options = parser.parse_args()
    copied, kept = copy_lessons(options.folder)
    print(f"{options.folder}: {len(copied)} files copied, {len(kept)} kept as they are")
    if options.copy_only:
        return 0
    start = options.folder / "en" / "00_the_map.ipynb"
    try:
        return subprocess.call([sys.executable, "-m", "jupyterlab", str(start)])
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
