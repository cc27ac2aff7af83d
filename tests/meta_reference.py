"""Meta's own Transformer, from the llama-models package.

Run as a program it writes the logits for a folder in Meta's format:

    python tests/meta_reference.py FOLDER RANK WORLD STORE TOKENS.npy LOGITS.npy

Every rank of the model-parallel world is then a process of its own; they meet at the file STORE.
"""

import inspect
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from fairscale.nn.model_parallel.initialize import initialize_model_parallel
from llama_models.llama3 import model as meta
from llama_models.llama3.args import ModelArgs

from jax_llama3 import Config, RopeScaling


def join_world(rank: int, world: int, store: str | Path) -> None:
    """What Meta's parallel layers ask for, even in a world of one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    initialize_model_parallel(world)


def meta_model(
    tensors: dict[str, np.ndarray], config: Config, batch: int, capacity: int
) -> meta.Transformer:
    """Meta's model of whole tensors under Meta's names."""
    assert config.dim == config.n_heads * config.head_dim, "Meta's model knows no other head_dim"
    args = ModelArgs(
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        vocab_size=config.vocab_size,
        multiple_of=1,
        ffn_dim_multiplier=(config.ffn_dim + 0.5) / int(2 * (4 * config.dim) / 3),
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        use_scaled_rope=False,
        max_batch_size=batch,
        max_seq_len=capacity,
    )
    model = meta.Transformer(args)
    weights = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(weights, strict=True)
    assert not missing
    assert not unexpected
    if config.rope_scaling is not None:
        model.freqs_cis = _scaled_angles(config, config.rope_scaling, capacity)
    return model


def _scaled_angles(config: Config, scaling: RopeScaling, capacity: int) -> torch.Tensor:
    """Meta's own arithmetic with another factor and context: its function holds Llama 3.1's as constants."""
    source = inspect.getsource(meta.apply_scaling) + inspect.getsource(meta.precompute_freqs_cis)
    for name, theirs, ours in (
        ("scale_factor", 8, scaling.factor),
        ("low_freq_factor", 1, scaling.low_freq_factor),
        ("high_freq_factor", 4, scaling.high_freq_factor),
        ("old_context_len", 8192, scaling.original_max_seq_len),
    ):
        assert source.count(f"{name} = {theirs}") == 1
        source = source.replace(f"{name} = {theirs}", f"{name} = {ours}")
    names = dict(vars(meta))
    exec(source, names)
    return names["precompute_freqs_cis"](config.head_dim, capacity, config.rope_theta, True)


def meta_logits(model: meta.Transformer, tokens: np.ndarray) -> np.ndarray:
    return model(torch.tensor(tokens, dtype=torch.int64), 0).numpy()


def main(folder: Path, rank: int, world: int, store: str, tokens: str, logits: str) -> None:
    join_world(rank, world, store)
    ids = np.load(tokens)
    values = json.loads((folder / "params.json").read_text())
    args = ModelArgs(**values, max_batch_size=ids.shape[0], max_seq_len=ids.shape[1])
    model = meta.Transformer(args)
    weights = torch.load(folder / f"consolidated.{rank:02}.pth", mmap=True, weights_only=True)
    missing, unexpected = model.load_state_dict(weights, strict=True)
    assert not missing
    assert not unexpected
    result = meta_logits(model, ids)
    if rank == 0:
        np.save(logits, result)
    torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that others have left


if __name__ == "__main__":
    place, number, size, *rest = sys.argv[1:]
    main(Path(place), int(number), int(size), *rest)
