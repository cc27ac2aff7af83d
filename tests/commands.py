"""A command of ours as a shell would see it, run in this process."""

from collections.abc import Callable


def run(command: Callable[[list[str]], int], arguments: list[str]) -> int | str | None:
    """The exit status; argparse raises it, commands return it."""
    try:
        return command(arguments)
    except SystemExit as stopped:
        return stopped.code
