"""What both command lines share: one-line errors and exit statuses."""

import argparse
import os
import sys
from typing import NoReturn

FAILURE, USAGE, INTERRUPTED = 1, 2, 130


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose usage errors are one line on stderr."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}; see {self.prog} --help\n")


def run_command(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """Parse, call the command's `run`, and turn every failure into one line on stderr."""
    options = parser.parse_args(arguments)
    try:
        options.run(options)
        print(end="", flush=True)
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone, as `head` does; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILURE
    except Exception as error:
        message = " ".join(str(error).split())
        if not message or not isinstance(error, ValueError | OSError | ImportError):
            message = f"{type(error).__name__}: {message}"
        print(f"error: {message}", file=sys.stderr)
        return FAILURE
