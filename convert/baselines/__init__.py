"""Other systems, each in a process of its own, to be timed beside this library."""

from collections.abc import Callable

Run = Callable[[str, int, int, int], float]  # of test, tokens, depth, batch; the seconds it took
