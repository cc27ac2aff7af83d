"""Our config from Meta's params.json, and back."""

from typing import Any

from jax_llama3.model.config import Config, RopeScaling, llama3_scaling

from ...source import refuse_unknown

_USED = frozenset(
    """dim n_layers n_heads n_kv_heads vocab_size multiple_of ffn_dim_multiplier norm_eps rope_theta
    use_scaled_rope head_dim hidden_dim tied_embeddings
    max_position_embeddings""".split()
)
# Keys of Mistral's that may only have the value under which they change nothing.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("transformer", None),
    "causal": (True, None),
    "use_biases": (False, None),
    "sliding_window": (None,),
    "moe": (None,),
    "lora": (None,),
    "quantization": (None,),
    "vision_encoder": (None,),
    "multimodal": (None,),
    "yarn": (None,),
    "llama_4_scaling": (None,),
}
_WITHOUT_EFFECT = frozenset(["max_batch_size", "max_seq_len"])  # sizes of Meta's own cache
# Llama 3.2 1B and 3B: (dim, n_layers). params.json does not say that their factor is not 8.
_FACTOR_32 = {(2048, 16), (3072, 28)}
_CONTEXT, _SCALED_CONTEXT = 8192, 131072
# What Meta's own models use: multiplier and multiple.
_KNOWN_FFN = ((1.3, 1024), (1.3, 4096), (1.2, 4096), (1.5, 256), (1.0, 256), (None, 256))


def parse_params(values: dict, rope_factor: float | None) -> tuple[Config, list[str]]:
    """The config, and what had to be decided; `rope_factor` overrides what would be inferred."""
    refuse_unknown(set(values) - _USED - _WITHOUT_EFFECT - set(_FIXED))
    for key, allowed in _FIXED.items():
        if values.get(key) not in allowed:
            raise ValueError(f"{key} {values[key]!r} is not supported, only {allowed[0]!r}")
    try:
        dim, n_heads, n_layers = values["dim"], values["n_heads"], values["n_layers"]
        n_kv_heads = values.get("n_kv_heads")
        for name in ("dim", "n_heads", "n_layers"):
            if type(values[name]) is not int or values[name] < 1:
                raise ValueError(f"{name} must be a positive integer, not {values[name]!r}")
        head_dim = values.get("head_dim")
        if head_dim is None and dim % n_heads:
            raise ValueError(f"dim {dim} is not a multiple of {n_heads} heads")
        scaled = values.get("use_scaled_rope", False)
        if not isinstance(scaled, bool):
            raise ValueError(f"use_scaled_rope must be true or false, not {scaled!r}")
        scaling, decision = _scaling(dim, n_layers, scaled, rope_factor)
        context = values.get("max_position_embeddings")
        config = Config(
            vocab_size=values["vocab_size"],
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
            head_dim=dim // n_heads if head_dim is None else head_dim,
            ffn_dim=_ffn_dim(values),
            norm_eps=values["norm_eps"],
            rope_theta=values["rope_theta"],
            rope_scaling=scaling,
            max_seq_len=context or (_SCALED_CONTEXT if scaling else _CONTEXT),
            tie_embeddings=values.get("tied_embeddings") or False,
        )
    except KeyError as error:
        raise ValueError(f"key {error} is missing") from None
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"a value has the wrong type: {error}") from None
    said = [] if context else [f"max_seq_len {config.max_seq_len}: params.json does not say"]
    return config, [decision, *said]


def params_values(config: Config) -> dict[str, Any]:
    """A params.json; what one cannot express raises ValueError."""
    if config.head_dim * config.n_heads != config.dim:
        raise ValueError(
            f"Meta's format knows no head_dim {config.head_dim} for dim {config.dim} and "
            f"{config.n_heads} heads; use to-hf"
        )
    scaled = config.rope_scaling is not None
    implied, _ = _scaling(config.dim, config.n_layers, scaled, None)
    if implied != config.rope_scaling:
        raise ValueError(
            f"Meta's params.json cannot say {config.rope_scaling}; for this model it means {implied}; "
            "use to-hf"
        )
    multiplier, multiple = _ffn_numbers(config)
    values = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaled,
    }
    return {key: value for key, value in values.items() if value is not None}


def ffn_dim(dim: int, multiplier: float | None, multiple: int) -> int:
    """Two thirds of 4 D, times the multiplier, rounded up; 4096, 1.3 and 1024 give 14336."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple * -(-width // multiple)


def _ffn_dim(values: dict) -> int:
    """Mistral's hidden_dim, or what Meta's two numbers make of dim."""
    if values.get("hidden_dim") is not None:
        return values["hidden_dim"]
    multiplier, multiple = values.get("ffn_dim_multiplier"), values.get("multiple_of", 256)
    if type(multiple) is not int or multiple < 1:
        raise ValueError(f"multiple_of must be a positive integer, not {multiple!r}")
    if multiplier is not None and not 0 < _number("ffn_dim_multiplier", multiplier) < 1000:
        raise ValueError(f"ffn_dim_multiplier {multiplier!r} is not between 0 and 1000")
    return ffn_dim(values["dim"], multiplier, multiple)


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return value


def _ffn_numbers(config: Config) -> tuple[float | None, int]:
    """Multiplier and multiple that give the config's feed-forward width."""
    exact = (config.ffn_dim + 0.5) / int(2 * (4 * config.dim) / 3)
    for multiplier, multiple in (*_KNOWN_FFN, (exact, 1)):
        if ffn_dim(config.dim, multiplier, multiple) == config.ffn_dim:
            return multiplier, multiple
    raise ValueError(f"no multiplier gives the feed-forward width {config.ffn_dim}; use to-hf")


def _scaling(
    dim: int, n_layers: int, scaled: bool, rope_factor: float | None
) -> tuple[RopeScaling | None, str]:
    if rope_factor is not None:
        scaling = None if rope_factor == 1 else llama3_scaling(rope_factor)
        return scaling, f"RoPE factor {rope_factor:g}, as given"
    if not scaled:
        return None, "no RoPE scaling: use_scaled_rope is not set"
    factor = 32.0 if (dim, n_layers) in _FACTOR_32 else 8.0
    note = f"RoPE factor {factor:g}, inferred from use_scaled_rope, dim and n_layers"
    return llama3_scaling(factor), note
