"""The seam between the network and faster forms of its operations.

The network computes with the operations that it is given. `PLAIN` are those of this folder: XLA runs
them on every device, they are differentiable, work under vmap and show everything to a tap. Other
rooms make others, which compute the same.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from .attention import attend
from .config import Config
from .linear import Products, products
from .rope import rope_tables

# (q [B T N H], k, v, positions [B T], tap=no_tap): attention to a cache's k and v, [B T N H]. A form that
# does not show its scores raises ValueError where it is given a tap. Without a cache the network attends
# with the plain form, whatever operations it is given.
Attend = Callable[..., Array]
# Cosine and sine [B T R] of every pair's angle at positions [B T].
Rotations = Callable[[Array, Config], tuple[Array, Array]]


class Ops(NamedTuple):
    """Functions alone, so that it can be hashed: it is static under jit and a part of jit's key."""

    products: Products
    attend: Attend
    rotations: Rotations


PLAIN = Ops(products, attend, rope_tables)
