"""What is asked of everything that computes in threads of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def check_threads(function: Callable[[Any], Any], inputs: Sequence[Any]) -> None:
    """Calls from as many threads as there are inputs do not disturb each other."""
    alone = [np.asarray(function(each)) for each in inputs]

    def repeat(index: int) -> bool:
        found = [np.asarray(function(inputs[index])) for _ in range(50)]
        return all(np.array_equal(each, alone[index]) for each in found)

    with ThreadPoolExecutor(len(inputs)) as pool:
        assert all(pool.map(repeat, range(len(inputs))))
