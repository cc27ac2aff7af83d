"""Models by name from a hub that is served on this machine."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import unquote

import huggingface_hub
import pytest
import safetensors.numpy
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
from random_models import TINY, sharp_params

from convert.fetch.hub import _choose, download, is_hub_name
from jax_llama3 import load
from jax_llama3.checkpoint.manifest import read_manifest

ROOT = Path(__file__).parent.parent
REPOSITORY = "some-lab/Tiny.Llama-1"
# Several commands in one process, because it takes seconds to start one.
COMMANDS = """
import contextlib, io, json, sys
from convert.__main__ import main

outcomes = []
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    outcomes.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(outcomes))
"""


def sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks a hub for: a repository's files, and each of them."""

    repositories: dict[str, dict[str, Path]]  # their revisions, each a folder
    gated: set[str]
    cut: dict[str, int]  # files that are sent to their half alone, and how many times
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        for name, revisions in self.repositories.items():
            if path.startswith(f"/api/models/{name}"):
                asked = re.search(r"/(?:revision|tree)/([^/]+)", path)
                self.describe(name, asked[1] if asked else "main", "/tree/" in path, body=body)
                return
            if path.startswith(f"/{name}/resolve/"):
                revision, file = path.removeprefix(f"/{name}/resolve/").split("/", 1)
                commits = {commit(name, own): folder for own, folder in revisions.items()}
                if name in self.gated:
                    self.refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
                else:
                    folder = {**revisions, **commits}[revision]
                    own = commit(name, revision) if revision in revisions else revision
                    self.send_file(own, folder / file, body=body)
                return
        self.refuse(404, "RepoNotFound")

    def describe(self, name: str, revision: str, tree: bool, *, body: bool) -> None:
        known = {**self.repositories[name]}
        known |= {commit(name, own): folder for own, folder in known.items()}
        if revision not in known:
            self.refuse(404, "RevisionNotFound")
            return
        folder = known[revision]
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*"))}
        files = {file: path.read_bytes() for file, path in files.items() if path.is_file()}
        if tree:
            answer: object = [
                {"type": "file", "path": file, "size": len(data), "oid": sha(data)}
                for file, data in files.items()
            ]
        else:
            siblings = [{"rfilename": file} for file in files]
            own = commit(name, revision) if revision in self.repositories[name] else revision
            answer = {"id": name, "modelId": name, "sha": own, "siblings": siblings}
        data = json.dumps(answer).encode()
        self.begin(200, {"Content-Length": len(data)})
        if body:
            self.wfile.write(data)

    def send_file(self, own: str, path: Path, *, body: bool) -> None:
        data, wanted = path.read_bytes(), self.headers["Range"]
        headers = {"ETag": f'"{sha(data)}"', "X-Repo-Commit": own}
        first = int(re.findall(r"bytes=(\d+)-", wanted)[0]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.begin(206 if wanted else 200, {**headers, "Content-Length": len(data) - first})
        if not body:
            return
        self.asked.append(path.name)
        if self.cut.get(path.name):
            self.cut[path.name] -= 1
            self.wfile.write(data[first : len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[first:])

    def refuse(self, status: int, code: str) -> None:
        self.begin(status, {"X-Error-Code": code, "Content-Length": 0})

    def begin(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002
        """Say nothing."""


def commit(name: str, revision: str) -> str:
    return sha(f"{name}@{revision}".encode())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[type[Hub], dict[str, str]]]:
    empty = {"repositories": {}, "gated": set(), "cut": {}, "asked": []}
    handler = type("Handler", (Hub,), empty)
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


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def run(environment: dict[str, str], *commands: list[str]) -> list[Outcome]:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*outcome) for outcome in json.loads(done.stdout.splitlines()[-1])]


def check_refusal(outcome: Outcome, message: str) -> None:
    """One line, and nothing else."""
    assert outcome.status == 1
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def publish(handler: type[Hub], tmp_path: Path) -> Path:
    """A repository that holds its model in three formats."""
    folder = write_folder(tmp_path / "hf", V4, hf_tensors(PARAMS))
    (folder / "pytorch_model.bin").write_bytes(b"not needed")
    (folder / "original").mkdir()
    for name in ("params.json", "consolidated.00.pth"):
        (folder / "original" / name).write_bytes(b"not needed")
    handler.repositories[REPOSITORY] = {"main": folder}
    return folder


def test_a_name_is_brought_and_converted(tmp_path: Path, hub: tuple) -> None:
    handler, environment = hub
    publish(handler, tmp_path)
    other = sharp_params(7, TINY)
    newer = write_folder(tmp_path / "newer", V4, hf_tensors(other))
    handler.repositories[REPOSITORY]["v2"] = newer
    converted, fetched, again, second, later, unnamed, foreign = run(
        environment,
        ["to-jax", REPOSITORY, str(tmp_path / "out")],
        ["fetch", REPOSITORY],
        ["fetch", f"{REPOSITORY}@main"],
        ["to-jax", f"{REPOSITORY}@v2", str(tmp_path / "second")],
        ["fetch", f"{REPOSITORY}@v2"],
        ["fetch", REPOSITORY, str(tmp_path / "second")],
        ["fetch", "another-lab/Tiny.Llama-1"],
    )
    assert converted.status == 0, converted.err
    manifest = read_manifest(tmp_path / "out")
    notes = [line for line in manifest["decisions"] if line.startswith("note: ")]
    assert converted.err.splitlines() == notes
    assert "no tokenizer" in converted.err
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)
    assert manifest["source"]["hub"] == REPOSITORY
    assert manifest["source"]["revision"] == commit(REPOSITORY, "main")
    # What another format holds is left on the hub.
    assert {*handler.asked} == {"config.json", "model.safetensors"}
    assert fetched.status == 0, fetched.err
    assert fetched.out.strip() == str(tmp_path / "home" / "Tiny.Llama-1")
    assert again.out == fetched.out
    assert second.status == 0, second.err
    assert bits(load(tmp_path / "second").params) == bits(other)
    source = read_manifest(tmp_path / "second")["source"]
    assert (source["asked"], source["revision"]) == ("v2", commit(REPOSITORY, "v2"))
    check_refusal(later, "holds another model or revision")
    check_refusal(unnamed, "holds another model or revision")
    check_refusal(foreign, "holds another model")


def test_without_the_network_the_cache_is_read(tmp_path: Path, hub: tuple) -> None:
    handler, environment = hub
    publish(handler, tmp_path)
    (online,) = run(environment, ["fetch", REPOSITORY, str(tmp_path / "online")])
    assert online.status == 0, online.err
    handler.asked.clear()
    offline, named, absent = run(
        {**environment, "HF_HUB_OFFLINE": "1"},
        ["fetch", REPOSITORY, str(tmp_path / "offline")],
        ["to-jax", f"{REPOSITORY}@{commit(REPOSITORY, 'main')}", str(tmp_path / "named")],
        ["fetch", "lab/absent", str(tmp_path / "absent")],
    )
    assert offline.status == 0, offline.err
    assert named.status == 0, named.err
    assert not handler.asked
    for name in ("offline", "named"):
        assert bits(load(tmp_path / name).params) == bits(PARAMS)
        source = read_manifest(tmp_path / name)["source"]
        assert source["revision"] == commit(REPOSITORY, "main")
    check_refusal(absent, "lab/absent is not in the hub's cache, and HF_HUB_OFFLINE forbids")


KEPT_BY_ANOTHER = """
import sys
from huggingface_hub import hf_hub_download

for file in sys.argv[2:]:
    hf_hub_download(sys.argv[1], file)
"""


def test_a_cache_that_another_program_filled_is_read_with_a_note(
    tmp_path: Path, hub: tuple
) -> None:
    handler, environment = hub
    folder = publish(handler, tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    files = ["config.json", "model.safetensors"]
    command = [sys.executable, "-c", KEPT_BY_ANOTHER, REPOSITORY, *files]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    (done,) = run(offline, ["to-jax", REPOSITORY, str(tmp_path / "out")])
    assert done.status == 0, done.err
    note = f"note: the hub's cache does not say what {REPOSITORY} holds"
    assert done.err.startswith(note)
    decisions = read_manifest(tmp_path / "out")["decisions"]
    assert any(line.startswith(note) for line in decisions)


@pytest.mark.slow
def test_after_a_cut_only_what_is_missing_is_downloaded(tmp_path: Path, hub: tuple) -> None:
    handler, environment = hub
    folder = write_folder(tmp_path / "hf", V4, {})
    (folder / "model.safetensors").unlink()
    tensors = hf_tensors(PARAMS)
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    placed = {name: [*shards][i % 2] for i, name in enumerate(tensors)}
    for name, shard in placed.items():
        shards[shard][name] = tensors[name]
    for shard, part in shards.items():
        safetensors.numpy.save_file(part, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    handler.repositories[REPOSITORY] = {"main": folder}
    *_, second = shards
    command = ["to-jax", REPOSITORY, str(tmp_path / "out")]
    handler.cut[second] = 1000
    (lost,) = run(environment, command)
    check_refusal(lost._replace(err=lost.err.splitlines(keepends=True)[-1]), "did not give it")
    assert not (tmp_path / "out").exists()
    handler.asked.clear()
    handler.cut[second] = 1
    (again,) = run(environment, command)
    assert again.status == 0, again.err
    assert handler.asked == [second, second]
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)


@pytest.mark.slow
def test_other_formats_on_the_hub(tmp_path: Path, hub: tuple) -> None:
    handler, environment = hub
    files = tmp_path / "gguf"
    files.mkdir()
    write_gguf(files / "model-f32.gguf", PLAIN, sharp_params(1, PLAIN))
    folders, params = {"gguf": files}, {"gguf": sharp_params(1, PLAIN)}
    if find_spec("torch") is not None:
        params |= {"original": sharp_params(1, META), "meta": sharp_params(1, META)}
        write_meta(tmp_path / "original" / "original", params["original"], shards=2)
        folders["original"] = tmp_path / "original"
        folders["meta"] = write_meta(tmp_path / "meta", params["meta"])
    for name, folder in folders.items():
        (folder / "README.md").write_text("a model card")
        handler.repositories[f"lab/{name}"] = {"main": folder}
    commands = [["to-jax", f"lab/{name}", str(tmp_path / "out" / name)] for name in folders]
    (tmp_path / "out").mkdir()
    for name, done in zip(folders, run(environment, *commands), strict=True):
        assert done.status == 0, done.err
        assert bits(load(tmp_path / "out" / name).params) == bits(params[name])


def test_what_the_hub_does_not_give_is_one_line(tmp_path: Path, hub: tuple) -> None:
    handler, environment = hub
    publish(handler, tmp_path)
    handler.repositories["lab/gated"] = handler.repositories[REPOSITORY]
    handler.gated.add("lab/gated")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"")
    handler.repositories["lab/pickles"] = {"main": tmp_path / "empty"}
    page = f"{environment['HF_ENDPOINT']}/lab/gated"
    gated = f"lab/gated is gated: accept its licence at {page}, and log in with 'hf auth login'"
    nothing = "lab/absent: no such path, and the hub did not give it: it has no such model"
    cases = {
        "lab/absent": nothing,
        "lab/pickles": "holds no safetensors",
        "lab/gated": gated,
        f"{REPOSITORY}@v9": f"{REPOSITORY} has no revision 'v9'",
    }
    commands = [["to-jax", name, str(tmp_path / "out")] for name in cases]
    for outcome, message in zip(run(environment, *commands), cases.values(), strict=True):
        check_refusal(outcome, message)
    somebody = {**environment, "HF_TOKEN": "hf_nobody"}  # who has not accepted the licence: 403
    for settings, name, message in (
        (somebody, "lab/gated", gated),
        ({**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}, "lab/x", "lab/x: no such path"),
    ):
        (outcome,) = run(settings, ["to-jax", name, str(tmp_path / "out")])
        check_refusal(outcome, message)
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
    slow = ["a.safetensors", "tokenizer.model", "merges.txt", "vocab.json"]
    assert _choose("n", slow) == slow
    assert _choose("n", ["tokenizer.json", *slow]) == ["tokenizer.json", slow[0], slow[3]]
    templates = ["a.safetensors", "chat_template.jinja", "additional_chat_templates/tool.jinja"]
    assert _choose("n", [*templates, "other/x.jinja", "other/config.json"]) == templates
    files = ["config.json", "pytorch_model.bin", "training_args.bin", "model.gguf"]
    assert _choose("n", files) == files[:2]
    files = ["config.json", "params.json", "consolidated.safetensors", "model.safetensors"]
    assert _choose("n", files) == ["config.json", "params.json", "model.safetensors"]
    assert _choose("n", files[:3]) == files[:3]
    shards = ["original/consolidated.00.pth", "original/params.json", "original/../../x", "x.pth"]
    assert _choose("n", shards) == shards[:2]
    variants = ["config.json", "model.safetensors", "model.fp16.safetensors"]
    assert _choose("n", variants) == variants[:2]
    parts = ["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"]
    assert _choose("n", parts) == parts[::-1]
    with pytest.raises(ValueError, match="3 GGUF files"):
        _choose("n", [*parts, "other.gguf"])
    with pytest.raises(ValueError, match="2 GGUF files"):
        _choose("n", ["a.gguf", "b.gguf"])


def test_a_folder_that_lacks_a_file_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = SimpleNamespace(sha=sha(b""), siblings=[SimpleNamespace(rfilename="model.safetensors")])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(OSError, match=r"lab/model: .* did not give it: .*model\.safetensors"):
        download("lab/model")
