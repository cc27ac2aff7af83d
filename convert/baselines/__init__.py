"""Other systems, each in a process of its own, to be timed beside this library."""

from collections.abc import Callable

# It takes a test's kind, its tokens, depth and batch, and returns the seconds that it took.
Run = Callable[[str, int, int, int], float]
