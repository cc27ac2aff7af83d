"""Every byte of a converted folder against its manifest."""

import os
from pathlib import Path

from ..runtime.progress import progress
from .format import abstract_stored, expected_leaves, is_export, read_config, read_tokenizer
from .manifest import MANIFEST, describe_tensor, hash_file, read_manifest
from .receipt import read_receipt
from .shards import open_shards


def verify(path: str | os.PathLike) -> dict:
    """Re-read every byte of a converted folder against its manifest, which is returned.

    The first difference raises ValueError. A folder in another format has its files checked, not its
    tensors; a single file is checked against its receipt.
    """
    folder = Path(path)
    if folder.is_file():
        return _verify_file(folder)
    manifest = read_manifest(folder)
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    if present != set(manifest["files"]):
        names = ", ".join(sorted(present ^ set(manifest["files"])))
        raise ValueError(f"{folder}: files missing or not in the manifest: {names}")
    _check_hashes(folder, manifest)
    if is_export(manifest):
        return manifest
    config = read_config(folder)
    files = open_shards(folder, manifest)
    tensors = manifest["tensors"]
    for name, leaf in expected_leaves(abstract_stored(config, tensors), tensors):
        found = {**describe_tensor(files[tensors[name]["file"]].get_tensor(name))}
        if found != {key: tensors[name][key] for key in found} or found["shape"] != [*leaf.shape]:
            raise ValueError(f"{folder}: tensor {name} is not the one in the manifest")
    read_tokenizer(folder, manifest)
    return manifest


def _verify_file(file: Path) -> dict:
    receipt = read_receipt(file)
    _check_hashes(file.parent, receipt)
    return receipt


def _check_hashes(folder: Path, manifest: dict) -> None:
    with progress(sum(entry["bytes"] for entry in manifest["files"].values()), "checking") as bar:
        for name, entry in manifest["files"].items():
            if hash_file(folder / name, bar) != entry["sha256"]:
                raise ValueError(f"{folder / name} is damaged: its sha256 is not the manifest's")
