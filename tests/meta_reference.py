"""Run as a program: logits of Meta's own Transformer for a folder in Meta's format.

    python tests/meta_reference.py FOLDER RANK WORLD STORE TOKENS.npy LOGITS.npy

Every rank of the model-parallel world is a process of its own; they meet at the file STORE.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from fairscale.nn.model_parallel.initialize import initialize_model_parallel
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer


def main(folder: Path, rank: int, world: int, store: str, tokens: str, logits: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    initialize_model_parallel(world)
    ids = torch.tensor(np.load(tokens), dtype=torch.int64)
    values = json.loads((folder / "params.json").read_text())
    args = ModelArgs(**values, max_batch_size=ids.shape[0], max_seq_len=ids.shape[1])
    model = Transformer(args)
    weights = torch.load(folder / f"consolidated.{rank:02}.pth", mmap=True, weights_only=True)
    missing, unexpected = model.load_state_dict(weights, strict=True)
    assert not missing
    assert not unexpected
    result = model(ids, 0)
    if rank == 0:
        np.save(logits, result.numpy())
    torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that others have left


if __name__ == "__main__":
    place, number, size, *rest = sys.argv[1:]
    main(Path(place), int(number), int(size), *rest)
