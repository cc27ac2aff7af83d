"""Our config from a Hugging Face config.json, of transformers 4 or 5, and back."""

from typing import Any

from jax_llama3.model.config import Config, RopeScaling

# Keys that change nothing in what the network computes at inference.
_WITHOUT_EFFECT = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "name_or_path",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "is_llama_config",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "torchscript",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "transformers.js_config",
    ]
)
# Keys that may only have the value under which they change nothing.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False, None),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
}
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
        "tie_word_embeddings",
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


def parse_config(values: dict) -> Config:
    """Our config from the values of a config.json; unknown or unsupported keys are refused."""
    known = _WITHOUT_EFFECT | _USED | set(_FIXED)
    if unknown := sorted(set(values) - known):
        raise ValueError(f"unknown keys {', '.join(unknown)}; what they mean is not supported")
    if "model_type" not in values:
        raise ValueError("model_type is missing; only 'llama' is supported")
    for key, allowed in _FIXED.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"{key} {values[key]!r} is not supported, only {allowed[0]!r}")
    try:
        dim, n_heads = values["hidden_size"], values["num_attention_heads"]
        theta, scaling = _parse_rope(values)
        head_dim = values.get("head_dim")
        if head_dim is None and dim % n_heads:
            raise ValueError(f"hidden_size {dim} is not a multiple of {n_heads} heads")
        n_kv_heads = values.get("num_key_value_heads")
        # What a key's absence means is transformers' default for it.
        return Config(
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
            max_seq_len=values.get("max_position_embeddings", 2048),
            tie_embeddings=values.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"key {error} is missing") from None
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"a value has the wrong type: {error}") from None


def _parse_rope(values: dict) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (v5) or `rope_theta` and `rope_scaling` (v4)."""
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    if new and old and new != old:
        raise ValueError("rope_parameters and rope_scaling contradict each other")
    for given in (new, old):
        if not isinstance(given, dict | None):
            raise ValueError(f"rope_parameters or rope_scaling {given!r} is no object")
    rope = new or old or {}
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
