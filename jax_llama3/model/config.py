"""The architecture of a model: one frozen, validated, hashable record."""

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch RoPE's long wavelengths beyond the original context."""

    factor: float | int
    low_freq_factor: float | int
    high_freq_factor: float | int
    original_max_seq_len: int

    def __post_init__(self) -> None:
        _require_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        _require_count(self, "original_max_seq_len")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must exceed "
                f"low_freq_factor {self.low_freq_factor}"
            )


def llama3_scaling(factor: float | int) -> RopeScaling:
    """The scaling of the Llama 3 family: its factor is 8 in Llama 3.1 and 3.3, 32 in Llama 3.2."""
    return RopeScaling(factor, 1.0, 4.0, 8192)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Architecture only: no batch, dtype, mesh or sampling. Bad values raise ValueError."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    norm_eps: float | int
    rope_theta: float | int
    rope_scaling: RopeScaling | None = None
    max_seq_len: int
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        _require_count(self, "vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads")
        _require_count(self, "head_dim", "ffn_dim", "max_seq_len")
        _require_positive(self, "norm_eps", "rope_theta")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs")
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"tie_embeddings must be true or false, not {self.tie_embeddings!r}")
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ValueError(f"rope_scaling must be a RopeScaling, not {self.rope_scaling!r}")


def config_to_dict(config: Config) -> dict:
    """The record as plain JSON values."""
    return dataclasses.asdict(config)


def config_from_dict(values: dict) -> Config:
    """Inverse of `config_to_dict`; a missing or unknown key raises ValueError."""
    names = {field.name for field in dataclasses.fields(Config)}
    if wrong := sorted(names ^ set(values)):
        raise ValueError(f"config keys missing or unknown: {', '.join(wrong)}")
    values = dict(values)
    if values["rope_scaling"] is not None:
        values["rope_scaling"] = _scaling_from_dict(values["rope_scaling"])
    return Config(**values)


def _scaling_from_dict(values: object) -> RopeScaling:
    names = {field.name for field in dataclasses.fields(RopeScaling)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"rope_scaling must hold exactly {', '.join(sorted(names))}")
    return RopeScaling(**values)


def _require_count(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")


def _require_positive(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name} must be a positive number, not {value!r}")
