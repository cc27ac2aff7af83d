"""Executed outputs: made the same for both languages, and kept where only noise has changed."""

import base64
import io
import re

import matplotlib.image
import numpy as np
from nbformat import NotebookNode

_NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]?\d+)?|[-+]?\d+e[-+]?\d+")
_RELATIVE = 1e-3  # numbers with a point that differ by less are the same on another processor
_ABSOLUTE = 1e-6
_PIXEL = 0.02  # mean difference of two pictures, of 1, that are the same
_MEASURED = "measured"  # the tag of cells with timings, or with figures that another processor may round otherwise


def clean(cell: NotebookNode, language: str) -> list[NotebookNode]:
    """The outputs of an executed cell, without what changes from run to run; texts joined."""
    outputs: list[NotebookNode] = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            raise ValueError(f"cell {cell['id']} writes to standard error: {output.text[:300]}")
        if outputs and output.output_type == "stream" == outputs[-1].output_type:
            outputs[-1].text += output.text
            continue
        made = NotebookNode(output)
        if made.output_type == "execute_result":
            made.execution_count = None
        if picture := made.get("metadata", {}).get("image/png"):
            if "alt" not in picture or "alt_zh" not in picture:
                raise ValueError(f"cell {cell['id']} shows a picture without alt text; use show()")
            words = {"alt": picture["alt" if language == "en" else "alt_zh"]}
            words |= {name: picture[name] for name in ("width",) if name in picture}
            made.metadata = NotebookNode({"image/png": NotebookNode(words)})
            made.data = NotebookNode({"image/png": made.data["image/png"].strip()})
        elif "image/png" in made.get("data", {}):
            raise ValueError(f"cell {cell['id']} shows a picture without alt text; use show()")
        outputs.append(made)
    return outputs


def settle(new: NotebookNode, old: NotebookNode | None) -> None:
    """Keep a cell's committed outputs where they say the same, or are timings of the same code."""
    if old is None or old.source != new.source:
        return
    if _MEASURED in new.metadata.get("tags", ()) or _same(new.outputs, old.outputs):
        new.outputs = old.outputs


def _same(new: list[NotebookNode], old: list[NotebookNode]) -> bool:
    return len(new) == len(old) and all(map(_same_output, new, old))


def _same_output(new: NotebookNode, old: NotebookNode) -> bool:
    if new.output_type != old.output_type or new.get("metadata") != old.get("metadata"):
        return False
    if new.output_type == "stream":
        return _same_text(new.text, old.text)
    if set(new.data) != set(old.data):
        return False
    if "image/png" in new.data:
        return _same_picture(new.data["image/png"], old.data["image/png"])
    return all(_same_text(str(new.data[kind]), str(old.data[kind])) for kind in new.data)


def _same_text(new: str, old: str) -> bool:
    # Arrays are printed in columns as wide as their longest number.
    if _NUMBER.sub("", new).split() != _NUMBER.sub("", old).split():
        return False
    pairs = zip(_NUMBER.findall(new), _NUMBER.findall(old), strict=True)
    return all(
        abs(float(a) - float(b)) <= _ABSOLUTE + _RELATIVE * max(abs(float(a)), abs(float(b)))
        for a, b in pairs
    )


def _same_picture(new: str, old: str) -> bool:
    pixels = [
        matplotlib.image.imread(io.BytesIO(base64.b64decode(each)), format="png")
        for each in (new, old)
    ]
    return pixels[0].shape == pixels[1].shape and np.abs(pixels[0] - pixels[1]).mean() < _PIXEL
