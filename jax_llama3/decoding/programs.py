"""The network as compiled programs: which operations they use, and how they are run or compiled ahead."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ..kernels import ops_for
from ..model.cache import Cache
from ..model.config import Config
from ..model.layers import embed, layer, unembed
from ..model.network import Run, apply_network
from ..model.ops import Ops
from ..model.params import Params
from ..model.taps import Tap, is_tapped, no_tap

# For all layers and all calls there is one trace of each part.
_COMPILED: dict[Any, Any] = {
    embed: jax.jit(embed, static_argnames=("config", "dtype", "ops")),
    layer: jax.jit(layer, static_argnames=("config", "tap", "ops"), donate_argnames="kv"),
    unembed: jax.jit(
        unembed, static_argnames=("capacity", "config", "tap", "ops"), donate_argnames="start"
    ),
}


def choose_ops(params: Params, batch: int, new: int, tap: Tap = no_tap) -> Ops:
    """The operations for `new` tokens of each of `batch` rows, where the weights are."""
    return ops_for(_platform(params), batch, new, tapped=is_tapped(tap))


def default_ops(batch: int, new: int) -> Ops:
    """`choose_ops` for weights on JAX's default device."""
    return ops_for(_default_platform(), batch, new)


def _platform(params: Params) -> str:
    """The platform of the device that holds the weights; if they are traced or abstract, JAX's default."""
    norm = params.norm
    if isinstance(norm, jax.Array) and not isinstance(norm, Tracer):
        return next(iter(norm.devices())).platform
    return _default_platform()


def _default_platform() -> str:
    """The platform of the device that `jax.default_device` names, or of JAX's first."""
    device = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def run_compiled(part: Callable[..., Any], *arguments: Any) -> Any:
    """Run a part of the network, or another function that is jitted, as a program of its own."""
    return _COMPILED.get(part, part)(*arguments)


def lower_with(found: Callable[[jax.stages.Lowered], Any]) -> Run:
    """A `run` that lowers every program instead of running it, and hands each of them to `found` once.

    What it returns is abstract: shapes and dtypes, with which the next program is lowered.
    """
    results: dict[Any, Any] = {}

    def run(part: Callable[..., Any], *arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        key = (part, tree, *map(_signature, leaves))
        if key not in results:
            lowered = _COMPILED.get(part, part).lower(*arguments)
            results[key] = jax.tree.map(_abstract, lowered.out_info)
            found(lowered)
        return results[key]

    return run


def _signature(leaf: Any) -> Any:
    """What decides, of an argument, which program runs."""
    return (leaf.shape, str(leaf.dtype)) if hasattr(leaf, "dtype") else leaf


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def read_tokens(
    params: Params,
    tokens: Any,
    lengths: Any,
    cache: Cache,
    config: Config,
    tap: Tap,
    ops: Ops,
    run: Run = run_compiled,
) -> tuple[Any, Any]:
    """`prefill` without its checks and its padding; a row of length 0 stays as it is.

    Without a tap one compiled layer runs for all layers in turn, so that a process which starts
    compiles one layer and prepares its products once. With a tap the network is one program.
    """
    if is_tapped(tap):
        return _read_tapped(params, tokens, lengths, cache, config, tap, ops)
    return apply_network(params, tokens, lengths, cache, config, tap, ops, run)


def decode_step(
    params: Params,
    tokens: Int[Array, " B"],
    cache: Cache,
    config: Config,
    tap: Tap,
    ops: Ops,
) -> tuple[Float[Array, "B V"], Cache]:
    """`decode` without its checks and its jit, for loops that are jitted as a whole."""
    ones = jnp.ones_like(tokens)
    return apply_network(params, tokens[:, None], ones, cache, config, tap, ops, run_compiled)


_STATIC = ("config", "tap", "ops")
decode_compiled = jax.jit(decode_step, static_argnames=_STATIC, donate_argnames="cache")
_read_tapped = jax.jit(apply_network, static_argnames=_STATIC, donate_argnames="cache")


def bucket(length: int) -> int:
    """The power of two, at least 16, that a length is padded to, so that few shapes are compiled."""
    return max(16, 1 << (length - 1).bit_length())


def int32(values: Int[Array | np.ndarray, "..."]) -> Int[Array | np.ndarray, "..."]:
    """Ids or lengths as the programs take them."""
    if isinstance(values, np.ndarray):
        return np.array(values, np.int32)  # a copy: the caller may change his before it is read
    return values.astype(np.int32) if values.dtype != np.int32 else values
