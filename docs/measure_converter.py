"""Measure the converter on a random checkpoint in Meta's format, in two shards.

    python docs/measure_converter.py speed WORK [--layers 14] [--rounds 5]
    python docs/measure_converter.py kills WORK [--layers 1] [--rounds 30]

`speed` runs conversions and `cp` with `sha256sum` over the same files in turn, as whole processes, and
prints the ratio of their times and the peak of memory. `kills` kills conversions at random moments,
repeats each one and compares the result with that of an undisturbed run. WORK is the folder that all
files are written into.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from jax_llama3.checkpoint.manifest import read_manifest

DIM, WIDTH, HEADS, KV_HEADS, VOCABULARY, SHARDS = 2048, 8192, 32, 8, 64128, 2


def write_checkpoint(folder: Path, layers: int) -> None:
    """Random bfloat16 weights of the shape of Llama 3.2 1B, with other layers and vocabulary."""
    values = {
        "dim": DIM,
        "n_layers": layers,
        "n_heads": HEADS,
        "n_kv_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "ffn_dim_multiplier": 1.5,
        "multiple_of": 256,
        "norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    }
    kv = DIM // HEADS * KV_HEADS // SHARDS
    layer = {
        "attention.wq": (DIM // SHARDS, DIM),
        "attention.wk": (kv, DIM),
        "attention.wv": (kv, DIM),
        "attention.wo": (DIM, DIM // SHARDS),
        "feed_forward.w1": (WIDTH // SHARDS, DIM),
        "feed_forward.w2": (DIM, WIDTH // SHARDS),
        "feed_forward.w3": (WIDTH // SHARDS, DIM),
    }
    shapes = dict.fromkeys(("tok_embeddings", "output"), (VOCABULARY // SHARDS, DIM))
    shapes |= {f"layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    norms = ["norm", *(f"layers.{i}.{n}_norm" for i in range(layers) for n in ("attention", "ffn"))]
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(values))
    for rank in range(SHARDS):
        tensors = {name: torch.ones(DIM) for name in norms}
        tensors |= {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}
        tensors = {f"{name}.weight": tensor.bfloat16() for name, tensor in tensors.items()}
        torch.save(tensors, folder / f"consolidated.{rank:02}.pth")


def converter(source: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "convert", "to-jax", str(source), str(folder), "--overwrite"]


def speed(source: Path, work: Path, rounds: int) -> None:
    """Run whole processes in turn and print the ratio of their times, round by round."""
    files = [str(path) for path in sorted(source.iterdir())]
    copy, folder = work / "copy", work / "out"
    ratios, peak = [], 0
    for _ in range(rounds):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        start = time.perf_counter()
        subprocess.run(["cp", *files, str(copy)], check=True)
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        copied = time.perf_counter() - start
        shutil.rmtree(copy)
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        process = subprocess.Popen(converter(source, folder), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        converted = time.perf_counter() - start
        assert status == 0
        peak = max(peak, usage.ru_maxrss * 1024)
        ratios.append(copied / converted)
        print(f"cp and sha256sum {copied:.2f} s, to-jax {converted:.2f} s, ratio {ratios[-1]:.2f}")
    tensors = read_manifest(folder)["tensors"]
    largest = max(
        torch.Size(entry["shape"]).numel() * getattr(torch, entry["dtype"]).itemsize
        for entry in tensors.values()
    )
    size = sum(path.stat().st_size for path in source.iterdir())
    print(f"{size / 1e9:.2f} GB, median ratio {statistics.median(ratios):.2f}")
    print(f"peak memory {peak / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")


def kills(source: Path, work: Path, rounds: int) -> None:
    """Kill each run at a random moment, then repeat the same command to its end."""
    whole, folder = work / "whole", work / "out"
    start = time.perf_counter()
    subprocess.run(converter(source, whole), check=True, stdout=subprocess.DEVNULL)
    duration = time.perf_counter() - start
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    interrupted = 0
    for index in range(rounds):
        moment = random.uniform(0.05, 1) * duration
        process = subprocess.Popen(converter(source, folder), stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        interrupted += killed
        for path in work.iterdir():
            if path not in (source, whole) and killed:
                check = [sys.executable, "-m", "convert", "check", str(path)]
                accepted = subprocess.run(check, capture_output=True).returncode == 0
                complete = accepted and {p.name for p in path.iterdir()} == set(expected)
                assert not accepted or (path == folder and complete), path
        kept = len(list(work.glob(".out*/weights-*")))
        subprocess.run(converter(source, folder), check=True, stdout=subprocess.DEVNULL)
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert found == expected
        assert {path.name for path in work.iterdir()} == {source.name, "whole", "out"}
        shutil.rmtree(folder)
        print(f"{index + 1}: killed after {moment:.2f} s ({killed}), {kept} files, then bit-equal")
    print(f"{rounds} runs, {interrupted} killed before their end, every result bit-equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "kills", "write"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    layers, rounds = {"speed": (14, 5), "kills": (1, 30), "write": (1, 0)}[options.what]
    source = options.work / "source"
    if options.what == "write":
        write_checkpoint(source, options.layers or layers)
        return
    if not source.exists():
        # Another process writes it: the memory of this one would count as the converter's.
        write = [sys.executable, __file__, "write", str(options.work)]
        subprocess.run([*write, "--layers", str(options.layers or layers)], check=True)
    run = {"speed": speed, "kills": kills}[options.what]
    run(source, options.work, options.rounds or rounds)


if __name__ == "__main__":
    main()
