"""What Meta's params.json says and leaves to be inferred."""

import numpy as np
import pytest
from checkpoints import META, META_PARAMS, meta_shards
from random_models import replace, sharp_params

from convert.formats.meta.config import ffn_dim, params_values, parse_params
from jax_llama3 import RopeScaling

PARAMS = sharp_params(3, META)


def test_feed_forward_widths_are_those_of_the_family() -> None:
    assert ffn_dim(4096, 1.3, 1024) == 14336
    assert ffn_dim(8192, 1.3, 4096) == 28672
    assert ffn_dim(16384, 1.2, 4096) == 53248
    assert ffn_dim(2048, 1.5, 256) == 8192
    assert ffn_dim(3072, 1.0, 256) == 8192
    assert ffn_dim(64, 0.556, 1) == 94  # 94.52: cut, not rounded
    for dim, width in (
        (4096, 14336),
        (8192, 28672),
        (16384, 53248),
        (2048, 8192),
        (64, 88),
        (2, 1),
    ):
        config = replace(META, dim=dim, n_heads=1, n_kv_heads=1, head_dim=dim, ffn_dim=width)
        values = params_values(config)
        assert parse_params(values, None)[0] == config


@pytest.mark.parametrize(
    ("changes", "given", "factor"),
    [
        ({}, None, 8.0),
        ({"dim": 2048, "n_layers": 16}, None, 32.0),
        ({"dim": 3072, "n_layers": 28}, None, 32.0),
        ({"dim": 4096, "n_layers": 32}, None, 8.0),
        ({"use_scaled_rope": False}, None, None),
        ({"dim": 2048, "n_layers": 16}, 8.0, 8.0),
        ({}, 32.0, 32.0),
        ({}, 1.0, None),
        ({"use_scaled_rope": False}, 8.0, 8.0),
    ],
)
def test_rope_scaling_is_inferred_or_given(
    changes: dict, given: float | None, factor: float | None
) -> None:
    config, decisions = parse_params({**META_PARAMS, **changes}, given)
    scaling = None if factor is None else RopeScaling(factor, 1.0, 4.0, 8192)
    assert config.rope_scaling == scaling
    assert config.max_seq_len == (8192 if factor is None else 131072)
    assert "RoPE" in decisions[0]
    if factor is not None:
        assert f"{factor:g}" in decisions[0]


def test_parts_are_what_metas_ranks_hold() -> None:
    """The writer of these tests against the text of the format, by hand."""
    shards = meta_shards(PARAMS, META, 4)
    assert shards[0]["layers.0.attention.wq.weight"].shape == (16, 64)
    assert shards[0]["layers.0.attention.wk.weight"].shape == (16, 64)
    assert shards[0]["layers.0.attention.wo.weight"].shape == (64, 16)
    assert shards[0]["layers.0.feed_forward.w2.weight"].shape == (64, 22)
    assert shards[0]["tok_embeddings.weight"].shape == (26, 64)
    assert np.array_equal(
        shards[0]["layers.0.attention.wk.weight"], shards[1]["layers.0.attention.wk.weight"]
    )
    assert not np.array_equal(
        shards[1]["layers.0.attention.wk.weight"], shards[2]["layers.0.attention.wk.weight"]
    )
