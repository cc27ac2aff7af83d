"""An adapter_config.json of PEFT: what it says of a LoRA adapter, and what is no such adapter."""

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jax_llama3.checkpoint.manifest import read_json

from .patterns import Match, match_modules

CONFIG = "adapter_config.json"
# Keys that say how the adapter was trained, and nothing of what it computes.
_WITHOUT_EFFECT = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",  # PEFT itself ignores it for every layer that a Llama has
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    ]
)
# Keys that make another adapter of it, unless they are null, false or empty; and that one's name.
_OTHERS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "LoRA with a bias (lora_bias)",
    "alora_invocation_tokens": "aLoRA, which depends on the tokens before it,",
    "arrow_config": "Arrow, which chooses between adapters,",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron's LoRA",
    "layer_replication": "LoRA on replicated layers (layer_replication)",
    "target_parameters": "LoRA on parameters (target_parameters)",
    "trainable_token_indices": "LoRA with single trainable tokens (trainable_token_indices)",
}
_USED = frozenset(
    "peft_type r lora_alpha target_modules exclude_modules bias use_rslora modules_to_save "
    "init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern "
    "ensure_weight_tying".split()
)
# Beginnings of an adapter that leave the base model as it is. Others, such as PiSSA's, change it.
_BEGINNINGS = (True, False, None, "true", "gaussian", "eva", "orthogonal")


class LoraConfig(NamedTuple):
    """A LoRA adapter's settings; `tied` asks that a tied head follows the embedding."""

    rank: int
    alpha: float
    rslora: bool
    ranks: dict[str, int]
    alphas: dict[str, float]
    saved: tuple[str, ...]
    tied: bool
    patterns: dict[str, Any]
    base: str | None
    decisions: tuple[str, ...]

    def matches(self, modules: list[str]) -> dict[str, Match]:
        """What the patterns say of every module."""
        return match_modules(modules, self.patterns)

    def rank_of(self, match: Match) -> int:
        """The rank that the config gives a module."""
        return self.rank if match.rank is None else self.ranks[match.rank]

    def scaling_of(self, match: Match) -> float:
        """What B A is multiplied by."""
        rank = self.rank_of(match)
        alpha = self.alpha if match.alpha is None else self.alphas[match.alpha]
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_config(path: Path) -> LoraConfig:
    """The settings; those of another kind of adapter, and unknown ones, raise ValueError."""
    try:
        return _parse(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _parse(values: dict[str, Any]) -> LoraConfig:
    if values.get("peft_type") != "LORA":
        raise ValueError(f"peft_type {values.get('peft_type')!r} is not supported, only 'LORA'")
    _refuse_others(values)
    decisions = _check_unknown(values)
    patterns = {
        "target_modules": _names(values, "target_modules", pattern=True),
        "exclude_modules": _names(values, "exclude_modules", pattern=True),
        "layers_to_transform": _layers(values.get("layers_to_transform")),
        "layers_pattern": _names(values, "layers_pattern", pattern=True),
        "rank_pattern": list(ranks := _numbers(values, "rank_pattern", int)),
        "alpha_pattern": list(alphas := _numbers(values, "alpha_pattern", float)),
    }
    if patterns["target_modules"] is None:
        patterns["target_modules"] = ["q_proj", "v_proj"]  # PEFT's own default for a Llama
        decisions.append("note: target_modules is null, which PEFT takes as q_proj and v_proj")
    if values.get("fan_in_fan_out"):
        decisions.append("fan_in_fan_out ignored, as PEFT does for linear layers")
    base = values.get("base_model_name_or_path")
    return LoraConfig(
        rank=_number("r", values.get("r", 8), int),
        alpha=_number("lora_alpha", values.get("lora_alpha", 8), float),
        rslora=_flag(values, "use_rslora"),
        ranks=ranks,
        alphas=alphas,
        saved=tuple(_names(values, "modules_to_save") or ()),
        tied=_flag(values, "ensure_weight_tying"),
        patterns=patterns,
        base=base if isinstance(base, str) else None,
        decisions=tuple(decisions),
    )


def _refuse_others(values: dict[str, Any]) -> None:
    for key, name in _OTHERS.items():
        if values.get(key):
            raise ValueError(f"{name} is not supported; merge it with PEFT's merge_and_unload")
    if values.get("bias", "none") not in ("none", None):
        raise ValueError(f"bias {values['bias']!r} is not supported, only 'none'")
    beginning = values.get("init_lora_weights", True)
    if beginning not in _BEGINNINGS:
        raise ValueError(
            f"init_lora_weights {beginning!r} changed the base model before training; save the "
            "adapter again with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


def _check_unknown(values: dict[str, Any]) -> list[str]:
    """Decisions on keys that are not known here: null and false say that something is off."""
    unknown = sorted(set(values) - _WITHOUT_EFFECT - set(_OTHERS) - _USED)
    if on := [key for key in unknown if values[key] not in (None, False)]:
        raise ValueError(
            f"unknown keys {', '.join(on)}; what they mean is not supported: delete them if they "
            "change nothing"
        )
    return [f"unknown keys that are off: {', '.join(unknown)}"] if unknown else []


def _names(values: dict[str, Any], key: str, *, pattern: bool = False) -> Any:
    value = values.get(key)
    if value is None or (pattern and isinstance(value, str)):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} {value!r} is not a list of names")
    return value


def _layers(value: Any) -> Any:
    if value is None or type(value) is int:
        return value
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise ValueError(f"layers_to_transform {value!r} is not a list of layers")
    return value


def _numbers(values: dict[str, Any], key: str, kind: type) -> dict[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} {value!r} is not an object")
    return {name: _number(f"{key} of {name}", each, kind) for name, each in value.items()}


def _number(key: str, value: Any, kind: type) -> Any:
    types = (int,) if kind is int else (int, float)
    fits = type(value) in types and abs(value) <= sys.float_info.max
    if not fits or (kind is int and value < 1):
        raise ValueError(
            f"{key} {value!r} is not a {'positive integer' if kind is int else 'number'}"
        )
    return value


def _flag(values: dict[str, Any], key: str) -> bool:
    value = values.get(key, False)
    if value not in (True, False, None):
        raise ValueError(f"{key} {value!r} is not true or false")
    return bool(value)
