"""A disk that is full from a certain call on."""

import errno
import os
from collections.abc import Callable


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_from(call: int, real: Callable) -> Callable:
    count = 0

    def limited(*arguments: object) -> object:
        nonlocal count
        count += 1
        return no_room() if count > call else real(*arguments)

    return limited
