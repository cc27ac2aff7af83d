"""Meta's files, which torch writes: `inspect` of lying and of huge ones, and the memory of a conversion."""

import gc
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from checkpoints import META, meta_shards, write_meta
from random_models import replace, sharp_params
from torch.serialization import skip_data

from convert.inspection import inspect
from convert.table import buffer_bytes, plan
from convert.to_jax import open_source, to_jax
from jax_llama3 import count_params

pytestmark = pytest.mark.reference
ROOT = Path(__file__).parent.parent


def test_headers_that_claim_more_than_is_there_are_refused(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "in", sharp_params(1, META))
    shard = meta_shards(sharp_params(1, META), META, 1)[0]
    part = {name: torch.tensor(tensor) for name, tensor in shard.items()}
    part["tok_embeddings.weight"] = torch.empty(1).expand(2**31, META.dim)
    torch.save(part, folder / "consolidated.00.pth")
    with pytest.raises(ValueError, match=r"tok_embeddings\.weight is larger than the bytes"):
        inspect(folder)


def llama_405b(folder: Path, shards: int) -> None:
    """Meta's Llama 3.1 405B in 16 shards, every tensor in its true shape, and not a byte of weights."""
    dim, heads, head_dim, width, vocab = 16384, 128, 128, 53248, 128256
    folder.mkdir()
    values = {
        "dim": dim,
        "n_layers": 126,
        "n_heads": heads,
        "n_kv_heads": 8,
        "vocab_size": vocab,
        "ffn_dim_multiplier": 1.2,
        "multiple_of": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    }
    (folder / "params.json").write_text(json.dumps(values))
    n = shards
    layer = {
        "attention_norm": (dim,),
        "ffn_norm": (dim,),
        "attention.wq": (heads * head_dim // n, dim),
        "attention.wk": (head_dim, dim),
        "attention.wv": (head_dim, dim),
        "attention.wo": (dim, heads * head_dim // n),
        "feed_forward.w1": (width // n, dim),
        "feed_forward.w3": (width // n, dim),
        "feed_forward.w2": (dim, width // n),
    }
    shapes = {"tok_embeddings.weight": (vocab // n, dim), "output.weight": (vocab // n, dim)}
    shapes["norm.weight"] = (dim,)
    for index in range(126):
        shapes |= {f"layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    for rank in range(shards):
        with skip_data():  # the files are as long as true ones, and hold nothing
            torch.save(tensors, folder / f"consolidated.{rank:02}.pth")


@pytest.mark.slow
def test_llama_405b_in_16_shards_plans_completely(tmp_path: Path) -> None:
    llama_405b(tmp_path / "405b", 16)
    source = open_source(tmp_path / "405b")
    tensors = plan(source, None)
    assert len(tensors) == 3 + 9 * 126
    assert count_params(source.config) == 405_853_388_800
    assert sum(tensor.nbytes for tensor in tensors) == 2 * 405_853_388_800
    # The largest block is a head of wq, 128 * 16384 * 2 = 4 MiB: three as read, five as written; and
    # twice 16 MiB are read back.
    assert buffer_bytes(source, tensors) == (8 * 4 + 2 * 16) << 20
    lines = inspect(tmp_path / "405b").splitlines()
    assert "811,706,777,600 bytes on disk" in lines[-1]
    on_disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / "405b").iterdir())
    assert on_disk < 100e6  # the test itself wrote only headers


def wide(folder: Path, shards: int) -> tuple[Path, int]:
    """About 100 MB in bfloat16, the largest tensor 16 MB, and what the plan says it needs."""
    config = replace(
        META, dim=1024, n_heads=8, n_kv_heads=4, head_dim=128, ffn_dim=2736, vocab_size=8192
    )
    config = replace(config, n_layers=4)
    params = {
        "dim": 1024,
        "n_layers": 4,
        "n_heads": 8,
        "n_kv_heads": 4,
        "vocab_size": 8192,
        "multiple_of": 16,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "use_scaled_rope": True,
    }
    write_meta(
        folder, sharp_params(1, config), config, shards=shards, values=params, dtype="bfloat16"
    )
    source = open_source(folder)
    return folder, buffer_bytes(source, plan(source, None))


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_streaming_needs_what_the_plan_says(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's and Python's own memory, traced exactly, with blocks small enough to matter."""
    monkeypatch.setattr("convert.table.BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr("convert.table.READ_BACK_BYTES", 2 << 20)
    monkeypatch.setattr("jax_llama3.checkpoint.stream.READ_BACK_BYTES", 2 << 20)
    folder, needed = wide(tmp_path / "in", shards)
    assert needed < 20e6
    to_jax(write_meta(tmp_path / "small", sharp_params(1, META)), tmp_path / "first")  # imports
    gc.collect()
    tracemalloc.start()
    to_jax(folder, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = 8192 * 1024 * 2
    assert peak < needed + 10e6  # hashing reads 4 MiB at a time in each thread
    assert peak < 2 * largest


RESIDENT = """
import resource, sys
from pathlib import Path
from convert.to_jax import to_jax
for source in sys.argv[1:]:
    to_jax(Path(source), Path(source + "-out"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The process as the system sees it: a 110 MB checkpoint against one of a hundredth of it."""
    write_meta(tmp_path / "small", sharp_params(1, META))
    wide(tmp_path / "large", 2)
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(tmp_path / "small"), str(tmp_path / "large")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    small, large = map(int, done.stdout.split())
    assert large - small < 4 * 8192 * 1024 * 2
