"""Which modules an adapter's patterns name, as PEFT matches them.

A pattern is a regular expression from a file that nobody has vouched for, and some take for ever: those
that are more than a name are matched in a process that can be ended. It runs this file as a script.
"""

import json
import re
import subprocess
import sys
from typing import Any, NamedTuple

_SECONDS = 10
_NAME = re.compile(r"[\w.]*")


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
    if all(map(_NAME.fullmatch, _texts(patterns))):
        return _match(names, patterns)
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([names, patterns]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"a pattern of target_modules and its like takes more than {_SECONDS} s to match; "
            "replace it by a list of modules"
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:]
        raise ValueError(f"a pattern of target_modules and its like cannot be used: {reason}")
    return {name: Match(*fields) for name, fields in json.loads(done.stdout).items()}


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
