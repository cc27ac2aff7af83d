"""A folder of large files and small texts: whole or absent, and continued where it was cut short."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.progress import progress
from .folder import check_space, drop_cached_pages, new_folder, remove, sync, write_synced
from .manifest import MANIFEST, describe_bytes, hash_file, sealed_manifest, versions
from .shards import partition, write_shard
from .stream import Tensor

_JOURNAL = "journal.jsonl"
_MARGIN = 1 << 20  # bytes of disk for texts and the manifest


class OutputFile(NamedTuple):
    """A large file that is to be written, and the function that writes it."""

    name: str
    nbytes: int
    # It takes a path and a progress bar, and returns the file's sha256, bytes and tensors.
    write: Callable[[Path, Any], dict]


def shard_outputs(
    tensors: list[Tensor], form: str, metadata: dict[str, str] | None = None
) -> list[OutputFile]:
    """The tensors in safetensors shards named after `form`, such as "w-{:05}-of-{:05}.safetensors"."""
    shards = partition(tensors)
    return [
        OutputFile(
            form.format(index, len(shards)),
            sum(tensor.nbytes for tensor in shard),
            lambda path, bar, shard=shard: write_shard(path, shard, bar, metadata),
        )
        for index, shard in enumerate(shards, 1)
    ]


def write_folder(
    folder: Path,
    outputs: list[OutputFile],
    texts: dict[str, bytes] | Callable[[dict[str, dict]], dict[str, bytes]],
    receipt: dict,
    *,
    overwrite: bool = False,
    resumable: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the outputs, the texts and a manifest over both; `receipt` goes into the manifest.

    `texts` may be a function of what was written. `resumable` says that the receipt decides every
    byte: the files that a killed run with the same receipt finished are verified and kept. `check` is
    called when all is written; if it raises, nothing stays. An output that exists raises
    FileExistsError, a disk without room OSError.
    """
    total = sum(output.nbytes for output in outputs)
    with new_folder(folder, overwrite=overwrite, resumable=resumable) as partial_folder:
        with progress(total, "writing") as bar:
            journal = _Journal(partial_folder, outputs, receipt)
            written = journal.verified(bar)
            done = sum(output.nbytes for output in outputs if output.name in written)
            check_space(partial_folder, total - done + _MARGIN)
            with ThreadPoolExecutor(1) as syncing:
                finished = []
                for output in outputs:
                    if output.name not in written:
                        written[output.name] = output.write(partial_folder / output.name, bar)
                        # The disk catches up while the next output is made.
                        entry = written[output.name]
                        finished.append(syncing.submit(journal.add, output.name, entry))
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
            name: {"file": output.name, **entry}
            for output in outputs
            for name, entry in written[output.name]["tensors"].items()
        }
        journal.close()
        manifest = sealed_manifest(receipt, dict(sorted(files.items())), tensors)
        write_synced(partial_folder / MANIFEST, manifest)


class _Journal:
    """The finished files of a partial folder, a line of JSON each.

    The first line is a hash of what is being written, so that another conversion does not continue it.
    """

    def __init__(self, folder: Path, outputs: list[OutputFile], receipt: dict) -> None:
        self._sizes = {output.name: output.nbytes for output in outputs}
        text = json.dumps([receipt, versions(), self._sizes], sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._folder, self._path = folder, folder / _JOURNAL

    def verified(self, bar: Any) -> dict[str, dict]:
        """The files that an earlier run finished and whose hashes still hold; all others are deleted."""
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
        drop_cached_pages(self._folder / name)
        self._append({"file": name, "entry": entry})

    def close(self) -> None:
        """Delete the journal; the manifest holds what it said."""
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
