"""Regular expressions of files that nobody has vouched for: some take for ever to match.

They are matched in a process that can be ended, which runs a file such as this one as a script.
"""

import json
import re
import subprocess
import sys
from typing import Any

_SECONDS = 10


def matching(patterns: list[str], names: list[str], what: str) -> dict[str, set[str]]:
    """The names that each pattern matches from their beginning on.

    `what` says for the user where the patterns stand. Those that cannot be used, or that take too
    long, raise ValueError.
    """
    if not patterns:
        return {}
    found = run_apart(__file__, [patterns, names], what)
    return {pattern: {*matched} for pattern, matched in zip(patterns, found, strict=True)}


def run_apart(script: str, values: Any, what: str) -> Any:
    """What a script, which imports nothing of ours, prints of the values that it is given, as JSON."""
    command = [sys.executable, "-I", script]
    try:
        done = subprocess.run(
            command, input=json.dumps(values), capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"a pattern of {what} takes more than {_SECONDS} s to match; "
            "replace it by a list of modules"
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:]
        raise ValueError(f"a pattern of {what} cannot be used: {reason}")
    return json.loads(done.stdout)


def _matching(patterns: list[str], names: list[str]) -> list[list[str]]:
    return [[name for name in names if re.match(pattern, name)] for pattern in patterns]


if __name__ == "__main__":
    try:
        json.dump(_matching(*json.load(sys.stdin)), sys.stdout)
    except (re.error, OverflowError) as error:
        sys.exit(str(error))
