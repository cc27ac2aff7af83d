"""How likely given tokens are: their log-probabilities under the model."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..model.cache import Cache, init_cache
from ..model.config import Config
from ..model.network import forward
from ..model.ops import Ops
from ..model.params import Params
from ..model.quantization import activation_dtype
from .checks import check_numbers, check_tokens, check_tree
from .programs import bucket, choose_ops

_AT_ONCE = 256  # positions whose logits over the whole vocabulary exist at one time


def score_tokens(
    params: Params, tokens: Sequence[int], config: Config, *, ops: Ops | None = None
) -> list[float]:
    """log p(tokens[i] | tokens[:i]) for i = 1 .. len - 1, in nats, from float32 logits.

    `ops` are the operations that it computes with: by default the fastest for the device. No token,
    an id outside the vocabulary, more tokens than the context holds, and weights that give NaN raise
    ValueError.
    """
    if len(tokens) == 0:
        raise ValueError("there is no token to score")
    check_tokens(np.asarray(tokens), config)
    if len(tokens) > config.max_seq_len:
        raise ValueError(
            f"the text has {len(tokens)} tokens and the model's context {config.max_seq_len}"
        )
    check_tree(params, config, None)
    inputs, targets = np.asarray(tokens[:-1]), np.asarray(tokens[1:])
    cache = init_cache(config, 1, bucket(len(tokens)), activation_dtype(params))
    logprobs: list[float] = []
    for start in range(0, len(inputs), _AT_ONCE):
        new = min(_AT_ONCE, len(inputs) - start)
        padded = np.zeros((2, 1, bucket(new)), np.int32)
        padded[0, 0, :new] = inputs[start : start + new]
        padded[1, 0, :new] = targets[start : start + new]
        chosen = choose_ops(params, 1, padded.shape[2]) if ops is None else ops
        arguments = (padded[0], padded[1], cache, np.int32(new), config, chosen)
        values, cache = _score_part(params, *arguments)
        logprobs += np.asarray(values)[0, :new].tolist()
    check_numbers(np.asarray(logprobs))
    return logprobs


@partial(jax.jit, static_argnames=("config", "ops"), donate_argnames="cache")
def _score_part(
    params: Params,
    tokens: Int[Array | np.ndarray, "1 T"],
    targets: Int[Array | np.ndarray, "1 T"],
    cache: Cache,
    new: Int[Array | np.ndarray, ""] | np.integer,
    config: Config,
    ops: Ops,
) -> tuple[Float[Array, "1 T"], Cache]:
    logits, filled = forward(params, tokens, config, cache, ops=ops)
    assert filled is not None
    logprobs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    return chosen, filled._replace(lengths=cache.lengths + new)
