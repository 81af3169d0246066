"""Pulling a bundle from a hub on the loopback: whole, resumed, damaged, refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from click.testing import CliRunner, Result

from rbctl.bundle import convert
from rbctl.bundle.catalogue import CATALOGUE, RELEASES, BundleSpec, Component, contents, missing_parts, state
from rbctl.bundle.download import pull, verify
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.files import read_json, read_safetensors

COMMIT, OLDER = "c" * 40, "b" * 40
LARGE = 10_000  # bytes from which on a file has a SHA-256 and lies in the store
UNET = "unet/diffusion_pytorch_model.safetensors"


class Hub(ThreadingHTTPServer):
    """Repositories in memory, served as the hub does.

    Attributes:
        repositories: {repo: {path: bytes}}; those of data sets begin with "datasets/".
        licences: {repo: what its card states}.
        served: (path, Range header or "", bytes sent) of every file request.
        cut: paths whose first answer breaks off half-way; every later one is refused while they stand here.
        garbled: paths that are served with a wrong byte.
        status: answer everything with this status.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.licences: dict[str, str] = {}
        self.served: list[tuple[str, str, int]] = []
        self.asked: list[str] = []
        self.tokens: dict[str, set[str]] = {"hub": set(), "store": set()}
        self.cut: dict[str, int] = {}
        self.garbled: set[str] = set()
        self.status = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        hub.asked.append(path)
        host = "store" if path.startswith("/store/") else "hub"
        hub.tokens[host].add(self.headers.get("Authorization", ""))
        if hub.status:
            self._send(hub.status, b"{}")
        elif found := re.fullmatch(r"/api/(?:models/|(?=datasets/))(.+)/revision/(\w+)", path):
            self._listing(found[1])
        elif found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            large = len(hub.repositories.get(found[1], {}).get(found[3], b"")) > LARGE
            if large:  # these lie in a store on another host, which must not see the token
                store = f"http://localhost:{hub.server_port}/store/{found[1]}/{found[3]}"
                self._send(302, b"", {"Location": store})
            else:
                self._file(found[1], found[3])
        elif found := re.fullmatch(r"/store/((?:datasets/)?[^/]+/[^/]+)/(.+)", path):
            self._file(found[1], found[2])
        else:
            self._send(404, b"{}")

    def _listing(self, repo: str) -> None:
        files = self.server.repositories.get(repo)
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        siblings = []
        for path, content in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if len(content) > LARGE:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        answer: dict[str, Any] = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
        if repo in self.server.licences:
            answer["cardData"] = {"license": self.server.licences[repo]}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, path: str) -> None:
        hub = self.server
        content = hub.repositories.get(repo, {}).get(path)
        if content is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        asked = self.headers.get("Range", "")
        if path in hub.cut:
            hub.cut[path] += 1
            if hub.cut[path] > 1:
                self._send(503, b"{}")
                return
            hub.served.append((path, asked, len(content) // 2))
            self._send(200, content, {"ETag": '"x"', "X-Repo-Commit": COMMIT}, sent=len(content) // 2)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if path in hub.garbled:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        hub.served.append((path, asked, len(content) - start))
        self._send(206 if start else 200, content[start:], headers)


@pytest.fixture
def hub(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny bundle's parts as their publishers ship them."""
    server = Hub()
    base = (
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "scheduler",
        "model_index.json",
    )
    server.repositories["acme/base"] = {
        path: (tiny_bundle / path).read_bytes() for path in contents(tiny_bundle) if path.split("/")[0] in base
    }
    nested: dict[str, Any] = {"image_proj": {}, "ms_adapter": {}}
    for name, tensor in read_safetensors(tiny_bundle / "ms_adapter.safetensors")[0].items():
        part, _, rest = name.partition(".")
        nested.update({name: tensor}) if not rest else nested[part].update({rest: tensor})
    buffer = io.BytesIO()
    torch.save(nested, buffer)
    server.repositories["acme/adapter"] = {"ms_adapter.bin": buffer.getvalue()}
    server.repositories["acme/clip"] = {
        path: (tiny_bundle / "clip_vision" / path).read_bytes() for path in ("config.json", "model.safetensors")
    }
    # The one adapter whose sizes are known is the official one; here it is the tiny one.
    sizes = read_json(tiny_bundle / "ms_adapter_config.json")
    del sizes["adapter_index_to_layer"]
    monkeypatch.setattr(convert, "official_adapter_config", lambda path, tensors: sizes)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def spec(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> BundleSpec:
    def part(target: str, repo: str, revision: str = COMMIT, **more: Any) -> Component:
        files = tuple((path, "" if more else path) for path in hub.repositories[repo])
        return Component(
            target=target, repo_id=repo, revision=revision, files=dict(files), licence="MIT", bytes=1, **more
        )

    made = ("ms_adapter.safetensors", "ms_adapter_config.json")
    tower = ("clip_vision/config.json", "clip_vision/model.safetensors")
    spec = BundleSpec(
        name="toy",
        description="",
        resolution=128,
        components=(
            part(".", "acme/base"),
            part("clip_vision", "acme/clip", convert="image_encoder", produces=tower),
            part("ms_adapter.safetensors", "acme/adapter", "main", convert="adapter", produces=made),
            Component(target="clipself", repo_id=None, licence="", bytes=0, note="bring yours into FOLDER"),
        ),
    )
    monkeypatch.setitem(CATALOGUE, "toy", spec)
    return spec


def rbctl(*arguments: object, group: str = "models") -> Result:
    return CliRunner().invoke(main, [group, *map(str, arguments)])


def one_line(result: Result) -> str:
    """The error of a failed command: its only line besides progress."""
    assert result.exit_code == 2, result.output
    assert not isinstance(result.exception, InputError)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    return line


def test_pull_brings_everything(hub: Hub, spec: BundleSpec, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    result = rbctl("pull", "toy", "--output", folder)
    assert result.exit_code == 0, result.output
    assert f"bring yours into {folder}" in result.stderr
    assert verify(folder) == []
    assert not (folder / ".pull").exists()
    assert not list(folder.rglob("*.bin"))
    entries = read_json(folder / "bundle.json")["files"]
    content = hub.repositories["acme/base"][UNET]
    assert entries[UNET] == {
        "repo": "acme/base",
        "commit": COMMIT,
        "path": UNET,
        "licence": "MIT",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    assert entries["ms_adapter.safetensors"]["commit"] == COMMIT  # resolved from "main"
    assert list(entries["ms_adapter.safetensors"]["made_from"]) == ["ms_adapter.bin"]
    adapters = [read_safetensors(f / "ms_adapter.safetensors")[0] for f in (folder, tiny_bundle)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[1])
    assert hub.tokens == {"hub": {"Bearer hf_test"}, "store": {""}}
    asked = len(hub.asked)
    assert rbctl("pull", "toy", "--output", folder).exit_code == 0
    assert len(hub.asked) == asked  # nothing to do, nobody asked


@pytest.mark.slow
def test_interrupted_pull_goes_on(hub: Hub, spec: BundleSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(hub.repositories["acme/base"][UNET])
    monkeypatch.setattr(
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16
    )  # of an unfinished chunk nothing stays
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.cut[UNET] = 0
    result = rbctl("pull", "toy", "--output", tmp_path / "toy")
    assert "answered 503" in one_line(result)
    before = {path for path, _, _ in hub.served}
    hub.cut.clear()
    hub.served.clear()
    pull(spec, tmp_path / "toy")
    assert verify(tmp_path / "toy") == []
    again = {path: (asked, sent) for path, asked, sent in hub.served}
    kept = size // 2 >> 16 << 16
    assert again[UNET] == (f"bytes={kept}-", size - kept)
    assert not before & again.keys() - {UNET}  # what was whole came once


@pytest.mark.slow
def test_wrong_bytes_are_told_and_mended(hub: Hub, spec: BundleSpec, tmp_path: Path) -> None:
    for path in (UNET, "vae/config.json"):  # a large file has a SHA-256, a small one git's id
        hub.garbled = {path}
        line = one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))
        assert f"acme/base/{path}: damaged" in line
        assert not (tmp_path / "toy" / path).exists()
    hub.garbled.clear()
    pull(spec, tmp_path / "toy")
    assert verify(tmp_path / "toy") == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "refuses .401.; set HF_TOKEN"), (403, "refuses .403."), (404, "answered 404"), (500, "answered 500")],
)
def test_refusals_are_one_line(hub: Hub, spec: BundleSpec, tmp_path: Path, status: int, words: str) -> None:
    hub.status = status
    line = one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))
    assert re.search(f"acme/base@{COMMIT}: .*({words})", line)


def test_missing_repository_and_file(hub: Hub, spec: BundleSpec, tmp_path: Path) -> None:
    kept = hub.repositories.pop("acme/clip")
    assert "acme/clip" in one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))
    hub.repositories["acme/clip"] = {"config.json": kept["config.json"]}
    assert "declares no file model.safetensors" in one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))


def test_nobody_there(spec: BundleSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))


def test_no_hub_there(hub: Hub, spec: BundleSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Answer, "_listing", lambda self, repo: self._send(200, b"<html>welcome</html>"))
    assert "cannot be reached" in one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))


def test_too_small_a_disk_is_told_before(hub: Hub, spec: BundleSpec, tmp_path: Path, monkeypatch: Any) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    line = one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))
    assert "needed, 1.0 kB free; free some or choose another --output" in line
    assert hub.served == []


def test_two_pulls_at_once(spec: BundleSpec, tmp_path: Path) -> None:
    from rbctl.runs import claim

    with claim(tmp_path / "toy"):
        assert "another run is writing here" in one_line(rbctl("pull", "toy", "--output", tmp_path / "toy"))


@pytest.mark.slow
def test_a_new_revision_is_fetched_again(hub: Hub, spec: BundleSpec, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    pull(spec, folder)
    manifest = folder / "bundle.json"
    manifest.write_text(manifest.read_text().replace(f'"commit": "{COMMIT}"', f'"commit": "{OLDER}"'))
    hub.served.clear()
    pull(spec, folder)
    fetched = {path for path, _, _ in hub.served}
    assert UNET in fetched
    assert "ms_adapter.bin" not in fetched  # it follows a branch: what is here stays


def test_verify_finds_every_kind_of_damage(hub: Hub, spec: BundleSpec, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    pull(spec, folder)
    (folder / "vae/config.json").unlink()
    (folder / "unet/config.json").write_text("{}")
    weights = bytearray((folder / UNET).read_bytes())
    weights[-1] ^= 1
    (folder / UNET).write_bytes(weights)
    (folder / "stray.bin").write_bytes(b"x")
    result = rbctl("verify", folder)
    assert "5 problems" in one_line(result)
    told = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert told["vae/config.json"] == "missing"
    assert told["vae"] == "the bundle needs it"
    assert "2 bytes" in told["unet/config.json"]
    assert "changed" in told[UNET]
    assert "not part of the bundle" in told["stray.bin"]
    for path in ("unet/config.json", UNET, "stray.bin"):
        (folder / path).unlink()
    pull(spec, folder)
    assert verify(folder) == []


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def published(hub: Hub, tiny_bundle: Path, component: Component) -> dict[str, bytes]:
    """A component's files under the names of its repository, with the tiny bundle's content."""
    if component.convert == "adapter":
        return dict.fromkeys(component.files, hub.repositories["acme/adapter"]["ms_adapter.bin"])
    if component.convert == "image_encoder":
        tensors = read_safetensors(tiny_bundle / "clip_vision" / "model.safetensors")[0]
        shards = [path for path in component.files if path.endswith(".bin")]
        where = {name: shards[number % len(shards)] for number, name in enumerate(tensors)}
        files = {shard: pickled({name: tensors[name] for name in tensors if where[name] == shard}) for shard in shards}
        files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": where}).encode()
        return files | {"config.json": (tiny_bundle / "clip_vision" / "config.json").read_bytes()}
    if component.convert == "local_encoder":
        tensors = read_safetensors(tiny_bundle / "clipself" / "model.safetensors")[0]
        return {f"local_image_encoder/{component.find}": pickled(tensors)}
    return {path: (tiny_bundle / place).read_bytes() for path, place in component.files.items()}


@pytest.mark.parametrize(
    "name", [n for n, spec in CATALOGUE.items() if any(c.target == "clipself" for c in spec.components)]
)
def test_every_bundle_of_the_catalogue_is_pulled_with_the_local_encoder(
    hub: Hub, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = read_json(tiny_bundle / "clipself" / "open_clip_config.json")
    monkeypatch.setattr(convert, "default_open_clip_config", lambda: config)
    for component in CATALOGUE[name].components:
        assert component.repo_id is not None
        files = published(hub, tiny_bundle, component)
        hub.repositories.setdefault(component.repo_id, {}).update(files)
    folder = tmp_path / name
    result = rbctl("pull", name, "--output", folder)
    assert result.exit_code == 0, result.output
    assert verify(folder) == []
    assert state(folder).startswith("complete, ")
    entries = read_json(folder / "bundle.json")["files"]
    assert entries["clipself/model.safetensors"]["repo"] == "QingyuShi/DreamRelation"
    assert "non-commercial" in entries["clipself/model.safetensors"]["licence"]
    ours, theirs = (read_safetensors(f / "clipself/model.safetensors")[0] for f in (folder, tiny_bundle))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("files", [None, {"README.md": b"no encoder"}])
def test_a_bundle_is_pulled_without_the_local_encoder_where_nobody_offers_it(
    hub: Hub, spec: BundleSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes] | None
) -> None:
    authors = next(c for c in CATALOGUE["sdxl"].components if c.target == "clipself")
    monkeypatch.setitem(CATALOGUE, "toy", dataclasses.replace(spec, components=(*spec.components[:-1], authors)))
    if files is not None:
        hub.repositories["QingyuShi/DreamRelation"] = files
    result = rbctl("pull", "toy", "--output", tmp_path / "toy")
    assert result.exit_code == 0, result.output
    assert f"'rbctl models import {tmp_path / 'toy'} --local-encoder epoch_6.pt'" in result.stderr
    assert state(tmp_path / "toy").startswith("complete, no local encoder")


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_is_pulled_resumed_and_verified(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    release, folder = RELEASES[name], tmp_path / "here"
    group, prefix = ("models", "") if release.kind == "model" else ("data", "datasets/")
    files = {"a/b/lora.safetensors": bytes(range(256)) * 800, "prompts.json": b"[]", "README.md": b"cc"}
    repo = prefix + release.repo_id
    hub.repositories[repo] = files | {"run.py": b"print()", ".gitattributes": b"", "../out.json": b"{}"}
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 14)
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.cut["a/b/lora.safetensors"] = 0
    assert "answered 503" in one_line(rbctl("pull", name, "--output", folder, group=group))
    hub.cut.clear()
    result = rbctl("pull", name, "--output", folder, group=group)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1] == f"licence: {release.licence}"
    assert ("a/b/lora.safetensors", "") not in [served[:2] for served in hub.served[1:]]  # the rest alone was asked for
    got = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    entries = json.loads(got.pop("bundle.json"))["files"]
    assert {path: content for path, content in got.items() if not path.startswith(".")} == files
    assert {entry["commit"] for entry in entries.values()} == {COMMIT}
    assert rbctl("verify", folder).exit_code == 0
    # once more: only what the hub has anew
    hub.served.clear()
    hub.licences[repo] = "cc-by-4.0"
    hub.repositories[repo]["prompts.json"] = b"[1]"
    assert "licence: cc-by-4.0" in rbctl("pull", name, "--output", folder, group=group).stderr
    assert [path for path, *_ in hub.served] == ["prompts.json"]
    (folder / "prompts.json").write_text("[2]")
    assert "1 problems" in one_line(rbctl("verify", folder))


def test_a_snapshot_of_whole_folders_is_pulled_and_goes_on(hub: Hub, tmp_path: Path) -> None:
    from tiny_bases import tiny_flux2_klein

    snapshot = tiny_flux2_klein(tmp_path / "snapshot")
    (snapshot / "recipe.yaml").unlink()
    files = {p.relative_to(snapshot).as_posix(): p.read_bytes() for p in snapshot.rglob("*") if p.is_file()}
    (spec,) = (spec for name, spec in CATALOGUE.items() if name == "flux2-klein-4b")
    repo = str(spec.components[0].repo_id)
    hub.repositories[repo] = files | {"README.md": b"x", "flux.safetensors": b"one file", "transformer/own.py": b"code"}
    folder = tmp_path / "klein"
    pull(spec, folder)
    assert missing_parts(folder) == []
    assert sorted(contents(folder)) == sorted(files)
    assert verify(folder) == []
    (folder / "vae" / "config.json").unlink()
    pull(spec, folder)
    assert verify(folder) == []
