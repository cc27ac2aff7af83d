"""Which modules an adapter's patterns name, as PEFT matches them.

Patterns that are more than a few names are matched in a process that can be ended. It runs this file as
a script.
"""

import json
import re
import sys
from typing import Any, NamedTuple

_NAME = re.compile(r"[\w.]*")
_FEW = 100


class Match(NamedTuple):
    """What the patterns say of one module."""

    targeted: bool
    rank: str | None  # the key of rank_pattern
    alpha: str | None  # the key of alpha_pattern


def match_modules(names: list[str], patterns: dict[str, Any]) -> dict[str, Match]:
    """`Match` by module; patterns that cannot be used raise ValueError.

    `patterns` has PEFT's keys target_modules, exclude_modules, layers_to_transform, layers_pattern, and
    the keys of rank_pattern and alpha_pattern as lists.
    """
    from ..patterns import run_apart  # not in the script, which stands alone

    texts = _texts(patterns)
    if len(texts) <= _FEW and all(map(_NAME.fullmatch, texts)):
        return _match(names, patterns)
    found = run_apart(__file__, [names, patterns], "target_modules and its like")
    return {name: Match(*fields) for name, fields in found.items()}


def _texts(patterns: dict[str, Any]) -> list[str]:
    values = [[v] if isinstance(v, str) else v for v in patterns.values()]
    return [str(text) for value in values if isinstance(value, list) for text in value]


def _match(names: list[str], patterns: dict[str, Any]) -> dict[str, Match]:
    return {
        name: Match(
            _is_targeted(name, patterns),
            _first(patterns["rank_pattern"], name),
            _first(patterns["alpha_pattern"], name),
        )
        for name in names
    }


def _first(keys: list[str], name: str) -> str | None:
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", name)), None)


def _is_targeted(name: str, patterns: dict[str, Any]) -> bool:
    target, excluded = patterns["target_modules"], patterns["exclude_modules"]
    if excluded and _names(excluded, name):
        return False
    if isinstance(target, str) and target.lower() == "all-linear":
        return name.startswith("model.layers.") and name.endswith("_proj")
    if not _names(target, name):
        return False
    layers = patterns["layers_to_transform"]
    # PEFT looks at the layer only of what a list names by its ending.
    if isinstance(target, str) or name in target or layers is None or layers == []:
        return True
    index = _layer(name, patterns["layers_pattern"])
    return index in (layers if isinstance(layers, list) else [layers])


def _names(target: str | list[str], name: str) -> bool:
    """Whether a pattern fits the whole name, or a list holds it or its ending."""
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None
    return name in target or any(name.endswith(f".{key}") for key in target)


def _layer(name: str, pattern: str | list[str] | None) -> int | None:
    patterns = [pattern] if isinstance(pattern, str) and pattern else pattern
    for form in [rf"(?:^|.*?\.){p}\." for p in patterns or []] or [r".*?\.[^.]*\."]:
        if found := re.match(form + r"(?P<idx>\d+)\.", name):
            return int(found["idx"])
    return None


if __name__ == "__main__":
    try:
        json.dump(_match(*json.load(sys.stdin)), sys.stdout)
    except re.error as error:
        sys.exit(str(error))
