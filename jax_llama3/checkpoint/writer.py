"""A folder of large files and small texts: whole or absent, and continued where it was cut short."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.progress import progress
from .folder import check_space, forget, new_folder, remove, sync, write_synced
from .manifest import MANIFEST, describe_bytes, hash_file, sealed_manifest, versions
from .shards import partition, write_shard
from .stream import Tensor

_JOURNAL = "journal.jsonl"
_MARGIN = 1 << 20  # for the names and the manifest


class Piece(NamedTuple):
    """A large file that is to be written, and how."""

    file: str
    nbytes: int
    write: Callable[[Path, Any], dict]  # of a path and a bar; sha256, bytes and tensors of the file


def shard_pieces(
    tensors: list[Tensor], form: str, metadata: dict[str, str] | None = None
) -> list[Piece]:
    """The tensors in safetensors shards named after `form`, such as "w-{:05}-of-{:05}.safetensors"."""
    shards = partition(tensors)
    return [
        Piece(
            form.format(index, len(shards)),
            sum(tensor.nbytes for tensor in shard),
            lambda path, bar, shard=shard: write_shard(path, shard, bar, metadata),
        )
        for index, shard in enumerate(shards, 1)
    ]


def write_folder(
    folder: Path,
    pieces: list[Piece],
    texts: dict[str, bytes] | Callable[[dict[str, dict]], dict[str, bytes]],
    receipt: dict,
    *,
    overwrite: bool = False,
    resumable: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the pieces, the texts and a manifest over both; `receipt` goes into the manifest.

    `texts` may be a function of what was written. `resumable` says that the receipt decides every
    byte: the files that a killed run with the same receipt finished are verified and kept. `check` is
    called when all is written, and may still refuse it.
    """
    total = sum(piece.nbytes for piece in pieces)
    with new_folder(folder, overwrite=overwrite, resumable=resumable) as partial_folder:
        with progress(total, "writing") as bar:
            journal = _Journal(partial_folder, pieces, receipt)
            written = journal.verified(bar)
            done = sum(piece.nbytes for piece in pieces if piece.file in written)
            check_space(partial_folder, total - done + _MARGIN)
            with ThreadPoolExecutor(1) as syncing:
                finished = []
                for piece in pieces:
                    if piece.file not in written:
                        written[piece.file] = piece.write(partial_folder / piece.file, bar)
                        # The disk catches up while the next piece is made.
                        entry = written[piece.file]
                        finished.append(syncing.submit(journal.add, piece.file, entry))
                for future in finished:
                    future.result()
        files = {
            name: {k: entry[k] for k in ("sha256", "bytes")} for name, entry in written.items()
        }
        for name, data in (texts(written) if callable(texts) else texts).items():
            write_synced(partial_folder / name, data)
            files[name] = describe_bytes(data)
        check()
        tensors = {
            name: {"file": piece.file, **entry}
            for piece in pieces
            for name, entry in written[piece.file]["tensors"].items()
        }
        journal.close()
        manifest = sealed_manifest(receipt, dict(sorted(files.items())), tensors)
        write_synced(partial_folder / MANIFEST, manifest)


class _Journal:
    """What is finished in a partial folder, a line for each file, under a line that says for what."""

    def __init__(self, folder: Path, pieces: list[Piece], receipt: dict) -> None:
        self._sizes = {piece.file: piece.nbytes for piece in pieces}
        text = json.dumps([receipt, versions(), self._sizes], sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._folder, self._path = folder, folder / _JOURNAL

    def verified(self, bar: Any) -> dict[str, dict]:
        """The files of an earlier run that are as it left them; everything else is deleted."""
        try:
            lines = self._read()
            finished = {name: entry for name, entry in lines if self._is_sound(name, entry, bar)}
        except (KeyError, TypeError):  # no journal of ours
            finished = {}
        for path in self._folder.iterdir():
            if path.name not in finished:
                remove(path)
        self._append({"key": self._key})
        for name, entry in finished.items():
            self.add(name, entry)
        return finished

    def add(self, name: str, entry: dict) -> None:
        """Wait until the disk has a file, and note that it is whole."""
        sync(self._folder / name)
        forget(self._folder / name)
        self._append({"file": name, "entry": entry})

    def close(self) -> None:
        """Delete the journal: what it says stands in the manifest."""
        self._path.unlink()

    def _read(self) -> list[tuple[str, dict]]:
        lines = []
        try:
            for line in self._path.read_text().splitlines():
                lines.append(json.loads(line))
        except (OSError, ValueError):
            pass  # absent, or its last line was cut short
        if not lines or lines[0] != {"key": self._key}:
            return []
        return [(line["file"], line["entry"]) for line in lines[1:]]

    def _is_sound(self, name: str, entry: dict, bar: Any) -> bool:
        path = self._folder / name
        if name not in self._sizes or not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
        return hash_file(path, bar) == entry["sha256"]

    def _append(self, line: dict) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync(self._folder)
