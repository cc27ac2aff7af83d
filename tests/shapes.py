"""Shapes that several tests share."""

from random_models import TINY, replace

# Contractions and the shapes of their two operands.
SPECS = {
    "BTD,NHD->BTNH": ((2, 3, 8), (5, 4, 8)),
    "BTD,FD->BTF": ((1, 1, 8), (7, 8)),
    "BTNH,DNH->BTD": ((1, 2, 5, 4), (6, 5, 4)),
}
# The default model with fewer layers.
DEFAULT_SHAPE = replace(
    TINY,
    vocab_size=49152,
    dim=576,
    n_layers=4,  # of 30: what is allocated does not grow with the depth
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    ffn_dim=1536,
    rope_scaling=None,
    tie_embeddings=True,
)
