"""Models by name from a hub that is served on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import huggingface_hub
import pytest
from checkpoints import (
    META,
    PARAMS,
    PLAIN,
    V4,
    bits,
    hf_tensors,
    write_folder,
    write_gguf,
    write_meta,
)
from random_models import sharp_params

from convert.fetch.hub import _choose, download, is_hub_name
from jax_llama3 import load
from jax_llama3.checkpoint.manifest import read_manifest

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks a hub for: a repository's files, and each of them."""

    repositories: dict[str, Path]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        for name, folder in self.repositories.items():
            if path.startswith(f"/api/models/{name}"):
                files = {
                    p.relative_to(folder).as_posix(): p.read_bytes()
                    for p in sorted(folder.rglob("*"))
                    if p.is_file()
                }
                if "/tree/" in path:
                    tree = [
                        {"type": "file", "path": file, "size": len(data), "oid": etag(data)}
                        for file, data in files.items()
                    ]
                    self.send(json.dumps(tree).encode(), body=body)
                    return
                siblings = [{"rfilename": file} for file in files]
                info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
                self.send(json.dumps(info).encode(), body=body)
                return
            if path.startswith(f"/{name}/resolve/"):
                file = path.split("/", 5)[5]
                if body:
                    self.asked.append(file)
                self.send((folder / file).read_bytes(), body=body)
                return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[type[Hub], dict[str, str]]]:
    handler = type("Handler", (Hub,), {"repositories": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield (
            handler,
            {
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(tmp_path / "cache"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "JAX_LLAMA3_HOME": str(tmp_path / "home"),
                "PYTHONPATH": str(ROOT),
            },
        )
        server.shutdown()


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "convert", *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


def test_a_name_is_brought_and_converted(tmp_path: Path, hub: tuple) -> None:
    handler, environment = hub
    folder = write_folder(tmp_path / "hf", V4, hf_tensors(PARAMS))
    (folder / "pytorch_model.bin").write_bytes(b"not needed")
    (folder / "original").mkdir()
    for name in ("params.json", "consolidated.00.pth"):
        (folder / "original" / name).write_bytes(b"not needed")
    handler.repositories["some-lab/Tiny.Llama-1"] = folder
    done = run(environment, "to-jax", "some-lab/Tiny.Llama-1", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        line for line in read_manifest(tmp_path / "out")["decisions"] if line.startswith("note: ")
    ]
    assert "no tokenizer" in done.stderr
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)
    source = read_manifest(tmp_path / "out")["source"]
    assert source["hub"] == "some-lab/Tiny.Llama-1"
    assert source["revision"] == COMMIT
    # What another format holds is left on the hub.
    assert sorted(set(handler.asked)) == ["config.json", "model.safetensors"]
    done = run(environment, "fetch", "some-lab/Tiny.Llama-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "home" / "Tiny.Llama-1")
    again = run(environment, "fetch", "some-lab/Tiny.Llama-1@main")
    assert again.stdout == done.stdout
    later = run(environment, "fetch", "some-lab/Tiny.Llama-1@v2")
    assert later.returncode == 1
    assert "holds another model or revision" in later.stderr
    other = run(environment, "fetch", "another-lab/Tiny.Llama-1")
    assert other.returncode == 1
    assert "holds another model" in other.stderr


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(k, marks=pytest.mark.reference) for k in ("original", "meta")), "gguf"],
)
def test_other_formats_on_the_hub(tmp_path: Path, hub: tuple, kind: str) -> None:
    handler, environment = hub
    params = sharp_params(1, PLAIN if kind == "gguf" else META)
    if kind == "original":
        write_meta(tmp_path / "repository" / "original", params, shards=2)
    elif kind == "meta":
        write_meta(tmp_path / "repository", params)
    else:
        (tmp_path / "repository").mkdir()
        write_gguf(tmp_path / "repository" / "model-f32.gguf", PLAIN, params)
    (tmp_path / "repository" / "README.md").write_text("a model card")
    handler.repositories["lab/model"] = tmp_path / "repository"
    done = run(environment, "to-jax", "lab/model", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert bits(load(tmp_path / "out").params) == bits(params)


def test_what_the_hub_does_not_give_is_one_line(tmp_path: Path, hub: tuple) -> None:
    handler, environment = hub
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"")
    handler.repositories["lab/pickles"] = tmp_path / "empty"
    nowhere = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    for settings, name, message in (
        (environment, "lab/absent", "lab/absent: no such path, and the hub did not give it"),
        (environment, "lab/pickles", "holds no safetensors"),
        (nowhere, "lab/model", "lab/model: no such path, and the hub did not give it"),
    ):
        done = run(settings, "to-jax", name, str(tmp_path / "out"))
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_and_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_name("meta-llama/Llama-3.2-1B")
    assert is_hub_name("meta-llama/Llama-3.2-1B@refs/pr/1")
    for name in ("/abs/path", "../model", "one", "a/b/c", "a/b.gguf/", "lab/", "~/x", "./x"):
        assert not is_hub_name(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "model").mkdir(parents=True)
    assert not is_hub_name("lab/model")
    files = ["config.json", "a.safetensors", "../x.safetensors", "onnx/m.safetensors", "x.bin"]
    assert _choose("n", files) == ["config.json", "a.safetensors"]
    files = ["config.json", "pytorch_model.bin", "training_args.bin", "model.gguf"]
    assert _choose("n", files) == files[:2]
    files = ["config.json", "params.json", "consolidated.safetensors", "model.safetensors"]
    assert _choose("n", files) == ["config.json", "params.json", "model.safetensors"]
    assert _choose("n", files[:3]) == files[:3]
    shards = ["original/consolidated.00.pth", "original/params.json", "original/../../x", "x.pth"]
    assert _choose("n", shards) == shards[:2]
    with pytest.raises(ValueError, match="2 GGUF files"):
        _choose("n", ["a.gguf", "b.gguf"])


def test_a_folder_that_lacks_a_file_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename="model.safetensors")])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(OSError, match=r"lab/model: .* did not give it: .*model\.safetensors"):
        download("lab/model")
