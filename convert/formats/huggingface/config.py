"""Our config from a Hugging Face config.json, of transformers 4 or 5, and back."""

import re
from typing import Any

from jax_llama3.model.config import Config, RopeScaling

from ...source import refuse_unknown
from .config_keys import FIXED, WITHOUT_EFFECT

SUPPORTED = ("llama", "mistral")
_USED = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "max_position_embeddings",
        "max_sequence_length",
        "tie_word_embeddings",
        "model_type",
        "layer_types",
        "quantization_config",
        "compression_config",
    ]
)
_ROPE_KEYS = frozenset(
    [
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
    ]
)


_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
# What errors of Config call by our names.
_THEIRS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "original_max_seq_len": "original_max_position_embeddings",
}


def model_type_refusal(values: dict) -> str | None:
    """Why a model of this config.json's type is not read; None if it is."""
    if values.get("model_type") is None:
        return "model_type is missing; add it if the model is one of llama's or mistral's kind"
    if values["model_type"] not in SUPPORTED:
        return f"model_type {values['model_type']!r} is not supported, only {_listed(SUPPORTED)}"
    return None


def parse_config(values: dict) -> Config:
    """Our config from the values of a config.json; unknown or unsupported keys are refused."""
    if refusal := model_type_refusal(values):
        raise ValueError(refusal)
    refuse_unknown(set(values) - _USED - set(WITHOUT_EFFECT) - set(FIXED))
    _check_fixed(values)
    try:
        return _config(values)
    except KeyError as error:
        raise ValueError(f"key {error} is missing") from None
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"a value has the wrong type: {error}") from None
    except ValueError as error:
        theirs = re.sub(r"\w+", lambda word: _THEIRS.get(word[0], word[0]), str(error))
        raise ValueError(theirs) from None


def _check_fixed(values: dict) -> None:
    """Refuse values that change what the network computes, and that it does not have here."""
    if values["model_type"] == "mistral":
        _check_window(values)
    for key, allowed in FIXED.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"{key} {values[key]!r} is not supported, only {_listed(allowed)}")
    if not {*(values.get("layer_types") or ())} <= {"full_attention"}:
        raise ValueError(
            f"layer_types {values['layer_types']!r} is not supported, only 'full_attention'"
        )


def _check_window(values: dict) -> None:
    """Refuse a Mistral whose attention has a window; it has one of 4096 if the key is absent."""
    window = values.get("sliding_window", 4096)
    if window is not None:
        absent = "" if "sliding_window" in values else ", which an absent key means,"
        raise ValueError(
            f"sliding_window {window!r}{absent} is not supported; set it to null if no text will be "
            "longer: up to there a window changes nothing"
        )


def _config(values: dict) -> Config:
    # What the absence of a key, or null, means is transformers' default for it.
    mistral = values["model_type"] == "mistral"
    context = values.get("max_position_embeddings", 131072 if mistral else 2048)
    for key, value in [
        *((key, values[key]) for key in _COUNTS),
        ("max_position_embeddings", context),
    ]:
        if type(value) is not int or value < 1:
            raise ValueError(f"{key} must be a positive integer, not {value!r}")
    if values.get("rms_norm_eps", 1e-6) is None:
        raise ValueError("rms_norm_eps must be a positive number, not None")
    dim, n_heads = values["hidden_size"], values["num_attention_heads"]
    theta, scaling = _parse_rope(values)
    head_dim = values.get("head_dim")
    if head_dim is None and dim % n_heads:
        raise ValueError(f"hidden_size {dim} is not a multiple of num_attention_heads {n_heads}")
    n_kv_heads = values.get("num_key_value_heads", 8 if mistral else None)
    tied = values.get("tie_word_embeddings")
    config = Config(
        vocab_size=values["vocab_size"],
        dim=dim,
        n_layers=values["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
        head_dim=dim // n_heads if head_dim is None else head_dim,
        ffn_dim=values["intermediate_size"],
        norm_eps=values.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_seq_len=context,
        tie_embeddings=False if tied is None else tied,
    )
    if (other := values.get("max_sequence_length")) not in (None, context):
        raise ValueError(
            f"max_sequence_length {other!r} contradicts max_position_embeddings {context}; "
            "delete the wrong one"
        )
    return config


def _listed(values: tuple) -> str:
    return " and ".join(repr(value) for value in values if value is not None) or "null"


def _parse_rope(values: dict) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (v5) or `rope_theta` and `rope_scaling` (v4)."""
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    if new and old and new != old:
        raise ValueError("rope_parameters and rope_scaling contradict each other")
    for given in (new, old):
        if not isinstance(given, dict | None):
            raise ValueError(f"rope_parameters or rope_scaling {given!r} is no object")
    rope = {key: value for key, value in (new or old or {}).items() if value is not None}
    if unknown := sorted(set(rope) - _ROPE_KEYS):
        raise ValueError(f"unknown RoPE keys {', '.join(unknown)}")
    thetas = {v for v in (values.get("rope_theta"), rope.get("rope_theta")) if v is not None}
    if len(thetas) > 1:
        raise ValueError(f"rope_theta is given twice, differently: {sorted(thetas)}")
    theta = thetas.pop() if thetas else 10000.0
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not supported, only 1.0")
    kinds = {rope[key] for key in ("rope_type", "type") if rope.get(key) is not None}
    if len(kinds) > 1:
        raise ValueError(f"rope_type and type contradict each other: {sorted(kinds)}")
    kind = kinds.pop() if kinds else "default"
    scaling_keys = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kind == "default":
        if scaling_keys:
            raise ValueError(f"RoPE scaling without a type: {', '.join(sorted(scaling_keys))}")
        return theta, None
    if kind != "llama3":
        raise ValueError(f"RoPE scaling {kind!r} is not supported, only 'llama3'")
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_seq_len=rope["original_max_position_embeddings"],
    )


def config_values(config: Config, dtype: str, bos_id: int | None, stop_ids: list[int]) -> dict:
    """A config.json that transformers 4 and 5 read alike."""
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "bos_token_id": bos_id,
        "eos_token_id": stop_ids if len(stop_ids) != 1 else stop_ids[0],
    }
    if not stop_ids:
        values["eos_token_id"] = None
    if (scaling := config.rope_scaling) is not None:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    return values
