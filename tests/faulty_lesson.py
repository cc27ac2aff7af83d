"""Run a lesson's code once for every fault in it, in one process, and say how each run ended.

Standard input is JSON: the code, and pairs of the text that is there and the text that the fault puts in
its place. Standard output is a JSON list: the name of the exception that ended each run, or "".
"""

import contextlib
import io
import json
import sys
import traceback
import types

import matplotlib.pyplot as plt


def ending(code: str) -> str:
    """The name of the exception in which code ends; "" if it ends well."""
    # A module of its own, since a function can be pickled only if its module knows it.
    lesson = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, "lesson", "exec"), vars(lesson))
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return type(error).__name__
    finally:
        plt.close("all")
    return ""


def main() -> None:
    given = json.load(sys.stdin)
    print(json.dumps([ending(given["code"].replace(old, new)) for old, new in given["faults"]]))


if __name__ == "__main__":
    main()
