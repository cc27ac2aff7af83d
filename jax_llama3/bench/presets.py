"""The published shapes of the family by name, to measure any of them without its weights."""

from ..model.config import Config, llama3_scaling


def preset(name: str) -> Config:
    """The architecture of a published model; an unknown name raises ValueError."""
    presets = _presets()
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(presets)}")
    return presets[name]


def preset_names() -> list[str]:
    """Every name that `preset` knows."""
    return list(_presets())


def _presets() -> dict[str, Config]:
    llama3 = {"max_seq_len": 8192}
    llama3_1 = {"max_seq_len": 131072, "rope_scaling": llama3_scaling(8.0)}
    llama3_2 = {"max_seq_len": 131072, "rope_scaling": llama3_scaling(32.0)}
    return {
        "smollm2-135m": Config(
            vocab_size=49152,
            dim=576,
            n_layers=30,
            n_heads=9,
            n_kv_heads=3,
            head_dim=64,
            ffn_dim=1536,
            norm_eps=1e-5,
            rope_theta=1e5,
            max_seq_len=8192,
            tie_embeddings=True,
        ),
        "llama3.2-1b": _llama(2048, 16, 32, 64, 8192, tie_embeddings=True, **llama3_2),
        "llama3.2-3b": _llama(3072, 28, 24, 128, 8192, tie_embeddings=True, **llama3_2),
        "llama3-8b": _llama(4096, 32, 32, 128, 14336, **llama3),
        "llama3.1-8b": _llama(4096, 32, 32, 128, 14336, **llama3_1),
        "llama3-70b": _llama(8192, 80, 64, 128, 28672, **llama3),
        "llama3.1-70b": _llama(8192, 80, 64, 128, 28672, **llama3_1),
        "llama3.3-70b": _llama(8192, 80, 64, 128, 28672, **llama3_1),
        "llama3.1-405b": _llama(16384, 126, 128, 128, 53248, **llama3_1),
    }


def _llama(
    dim: int, n_layers: int, n_heads: int, head_dim: int, ffn_dim: int, **others: object
) -> Config:
    """What all models of the family share: the vocabulary, 8 key/value heads, theta and eps."""
    values = {
        "vocab_size": 128256,
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": 8,
        "head_dim": head_dim,
        "ffn_dim": ffn_dim,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }
    return Config(**values, **others)  # pyright: ignore[reportArgumentType]
