"""Faster forms of the few operations in `model.ops`, never needed for a result.

`ops_for` is the one switch: it says which operations a platform's programs compute with.
"""

from ..model.ops import PLAIN, Ops
from .cpu.ops import NUMBA, XLA
from .cpu.registration import has_kernels

__all__ = ["ops_for"]

_SHORT_PROMPT = 16  # tokens of all rows together


def ops_for(platform: str, batch: int, new: int, *, tapped: bool = False) -> Ops:
    """The fastest operations that this process has for `new` tokens of each of `batch` rows.

    `platform` is what JAX calls it, such as "cpu" or "cuda"; for all but CPUs they are `PLAIN`. With
    `tapped` attention is the plain one, which shows its scores to a tap. The first answer that needs
    numba imports it, which takes a second, and compiles the kernels once a machine.
    """
    if platform != "cpu":
        return PLAIN
    # What a new process does first is often to read such a prompt: to import the kernels for it would
    # take longer than it takes without them.
    is_short = 1 < new <= batch * new <= _SHORT_PROMPT
    fast = XLA if is_short or not has_kernels() else NUMBA
    return fast._replace(attend=PLAIN.attend) if tapped else fast
