"""A conversion that is killed, repeated, raced or out of room: the result is whole, or there is none."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import PARAMS, V4, bits, hf_tensors, write_folder
from deferred import deferred
from disks import full_from
from random_models import TINY, sharp_params

import jax_llama3.checkpoint.stream
from convert.__main__ import main
from convert.export import to_hf
from convert.to_jax import to_jax
from jax_llama3 import Model, load, save
from jax_llama3.checkpoint.folder import OLD
from jax_llama3.checkpoint.manifest import PARTIAL, read_manifest
from jax_llama3.checkpoint.verification import verify

ROOT = Path(__file__).parent.parent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "in", V4, hf_tensors(PARAMS))


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax_llama3.checkpoint.shards._SMALLEST", 40_000)


def killed_at(monkeypatch: pytest.MonkeyPatch, convert: Callable, shard: int) -> None:
    """Run a conversion that stops dead when it begins the given shard."""
    from jax_llama3.checkpoint import writer

    write = writer.write_shard
    count = 0

    def dying(*arguments: object) -> dict:
        nonlocal count
        if count == shard:
            raise KeyboardInterrupt  # which, like a kill, leaves what is finished
        count += 1
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", dying)
        with pytest.raises(KeyboardInterrupt):
            convert()


@pytest.mark.slow
def test_killed_at_every_step_and_repeated_the_end_is_the_same(
    tmp_path: Path, source: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "killing.py"), str(source), str(tmp_path / "place")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) > 100
    assert {line.split()[0] for line in lines} == {"False", "True"}
    assert {"rename", "fsync", "pwrite"} <= {line.split()[2] for line in lines}


def test_a_repeated_run_goes_on_from_whole_shards(
    tmp_path: Path, source: Path, many_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_jax(source, tmp_path / "whole")
    out = tmp_path / "out"
    killed_at(monkeypatch, lambda: to_jax(source, out), 3)
    partial_folder = tmp_path / f".out{PARTIAL}"
    finished = {p.name: p.stat().st_ino for p in partial_folder.glob("weights-*")}
    assert len(finished) == 3
    with pytest.raises(ValueError, match=r"cut short"):
        load(partial_folder)
    to_jax(source, out)
    kept = {path.name: path.stat().st_ino for path in out.glob("weights-*")}
    assert {name: kept[name] for name in finished} == finished
    assert len(kept) > 4
    verify(out)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


SPOILED = {
    "a flipped bit": lambda folder, source: spoil(folder / "weights-00001-of-00009.safetensors"),
    "a missing shard": lambda folder, source: next(folder.glob("weights-*")).unlink(),
    "no journal": lambda folder, source: (folder / "journal.jsonl").unlink(),
    "a journal of something else": lambda folder, source: rewrite_journal(folder, '{"file": 3}'),
    "a journal that climbs": lambda folder, source: rewrite_journal(
        folder, '{"file": "../in/config.json", "entry": {"bytes": 1}}'
    ),
    "a torn journal": lambda folder, source: tear(folder / "journal.jsonl"),
    "a stray file": lambda folder, source: (folder / "weights-stray").write_bytes(b"x"),
    "a changed source": lambda folder, source: write_again(source),
}


def spoil(path: Path) -> None:
    path = sorted(path.parent.glob("weights-*"))[0]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def rewrite_journal(folder: Path, line: str) -> None:
    key = (folder / "journal.jsonl").read_text().splitlines()[0]
    (folder / "journal.jsonl").write_text(f"{key}\n{line}\n")


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def write_again(source: Path) -> None:
    import safetensors.numpy

    tensors = {name: array * 2 for name, array in hf_tensors(PARAMS).items()}
    safetensors.numpy.save_file(tensors, source / "model.safetensors")


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED.keys())
def test_only_what_is_verified_is_gone_on_from(
    tmp_path: Path,
    source: Path,
    many_shards: None,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable,
) -> None:
    killed_at(monkeypatch, lambda: to_jax(source, tmp_path / "out"), 3)
    change(tmp_path / f".out{PARTIAL}", source)
    to_jax(source, tmp_path / "whole")
    to_jax(source, tmp_path / "out")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_another_dtype_does_not_go_on_from_the_first(
    tmp_path: Path, source: Path, many_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(monkeypatch, lambda: to_jax(source, tmp_path / "out"), 3)
    to_jax(source, tmp_path / "out", dtype="bfloat16")
    verify(tmp_path / "out")
    dtypes = {entry["dtype"] for entry in read_manifest(tmp_path / "out")["tensors"].values()}
    assert dtypes == {"bfloat16"}


def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(TINY, PARAMS, None)
    killed_at(monkeypatch, lambda: save(tmp_path / "out", model), 0)
    assert list(tmp_path.iterdir()) == []


def test_of_two_converters_one_wins_and_the_other_says_so(tmp_path: Path, source: Path) -> None:
    partial_folder = tmp_path / f".out{PARTIAL}"
    partial_folder.mkdir()
    (partial_folder / "begun").write_bytes(b"by the first")
    descriptor = os.open(partial_folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(FileExistsError, match=r"another run is writing .*out; wait"):
        to_jax(source, tmp_path / "out")
    assert (partial_folder / "begun").read_bytes() == b"by the first"
    os.close(descriptor)
    to_jax(source, tmp_path / "out")
    verify(tmp_path / "out")


@deferred
def test_converters_started_together(tmp_path: Path, source: Path) -> None:
    command = [sys.executable, "-m", "convert", "to-jax", str(source), str(tmp_path / "out")]
    runs = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    errors = [run.communicate()[1].decode() for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1, 1]
    failed = [error for run, error in zip(runs, errors, strict=True) if run.returncode]
    for error in failed:
        assert error.startswith("error: ")
        assert "another run is writing" in error or "exists already" in error
    verify(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_source_that_changes_meanwhile_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jax_llama3.checkpoint import writer

    write = writer.write_shard

    def meddle(*arguments: object) -> dict:
        path = source / "model.safetensors"
        path.write_bytes(path.read_bytes())
        return write(*arguments)

    monkeypatch.setattr(writer, "write_shard", meddle)
    with pytest.raises(ValueError, match=r"model\.safetensors changed while it was converted"):
        to_jax(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


FULL = {
    "before anything": ("os.posix_fallocate", 0),
    "at the header": ("os.pwrite", 0),
    "mid-shard": ("os.pwrite", 5),
    "at the sync": ("os.fdatasync", 0),
    "at a text": ("jax_llama3.checkpoint.writer.write_synced", 0),
    "at the manifest": ("jax_llama3.checkpoint.writer.write_synced", 1),
}


@pytest.mark.parametrize(("name", "call"), FULL.values(), ids=FULL.keys())
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
    call: int,
    existing: bool,
) -> None:
    if existing:
        to_jax(source, tmp_path / "out")
    module, _, attribute = name.rpartition(".")
    real = getattr(sys.modules[module], attribute)
    with monkeypatch.context() as patch:
        patch.setattr(name, full_from(call, real))
        arguments = ["to-jax", str(source), str(tmp_path / "out"), "--dtype", "bfloat16"]
        assert main([*arguments, "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "No space left" in error
    assert str(tmp_path / "out") in error
    assert sorted(p.name for p in tmp_path.iterdir()) == (["in", "out"] if existing else ["in"])
    if existing:
        assert bits(load(tmp_path / "out").params) == bits(PARAMS)


def test_room_is_asked_for_first(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"GB are needed and 0\.000 GB are free; make room"):
        to_jax(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_the_disk_did_not_keep_is_noticed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread

    def forgetful(descriptor: int, length: int, offset: int) -> bytes:
        data = pread(descriptor, length, offset)
        return bytes([data[0] ^ 1]) + data[1:]

    monkeypatch.setattr(jax_llama3.checkpoint.stream.os, "pread", forgetful)
    with pytest.raises(OSError, match=r"weights-00001-of-00001\.safetensors: not read back"):
        to_jax(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("suffix", [PARTIAL, OLD])
def test_names_of_unfinished_folders_are_not_outputs(
    tmp_path: Path, source: Path, suffix: str
) -> None:
    with pytest.raises(ValueError, match="such names are for what is being written"):
        to_jax(source, tmp_path / f".x{suffix}")


def test_a_late_refusal_leaves_no_parent_folders(tmp_path: Path) -> None:
    tensors = hf_tensors(PARAMS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * np.nan
    source = write_folder(tmp_path / "in", V4, tensors)
    with pytest.raises(ValueError, match="NaN"):
        to_jax(source, tmp_path / "new" / "deeper" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", ["a file", "a link", "a dangling link", "a foreign folder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_not_ours_is_left_alone(
    tmp_path: Path, source: Path, kind: str, overwrite: bool
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    if kind == "a file":
        out.write_text("thesis")
    elif kind == "a link":
        to_jax(source, elsewhere)
        out.symlink_to(elsewhere)
    elif kind == "a dangling link":
        out.symlink_to(elsewhere)
    else:
        out.mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="out"):
        to_jax(source, out, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_read_only_place_is_named(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["to-jax", str(source), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Permission denied" in error
    assert str(tmp_path) in error


@pytest.mark.parametrize("name", ["with blanks", "ünï-中文", "new\nline", "-dash", "a" * 250])
def test_names_of_any_kind(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / f"in {name}"[:240], V4, hf_tensors(PARAMS))
    to_jax(source, tmp_path / name)
    assert bits(load(tmp_path / name).params) == bits(PARAMS)
    verify(tmp_path / name)


def test_an_old_run_between_its_renames_is_undone_by_the_next(tmp_path: Path, source: Path) -> None:
    to_jax(source, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / f".out{OLD}")
    to_jax(write_folder(tmp_path / "other", V4, hf_tensors(sharp_params(9, TINY))), tmp_path / "x")
    with pytest.raises(FileExistsError):
        to_jax(source, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)


def test_a_folder_that_only_looks_written_is_not_accepted(tmp_path: Path, source: Path) -> None:
    to_jax(source, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / f".out{PARTIAL}")
    for use in (load, verify, lambda path: to_hf(path, tmp_path / "hf")):
        with pytest.raises(ValueError, match="being written, or was cut short"):
            use(tmp_path / f".out{PARTIAL}")
    to_jax(source, tmp_path / "out")
    verify(tmp_path / "out")


def test_files_that_are_written_are_read_from_the_disk_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = []
    monkeypatch.setattr(
        "jax_llama3.checkpoint.writer.drop_cached_pages",
        lambda path: forgotten.append((path.name, path.stat().st_size)),
    )
    save(tmp_path / "model", Model(TINY, sharp_params(0, TINY), None))
    written = [(p.name, p.stat().st_size) for p in (tmp_path / "model").glob("weights-*")]
    assert sorted(forgotten) == sorted(written)
