"""Models by their name on the hub, through the hub's real client, from a small hub that runs in the test."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

COMMIT = "5" * 40
TOKEN = "hf_secret"
VIDEOMAE = {
    "image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 3,
}  # fmt: skip
#: Loads each name in turn, as a checkpoint of VideoMAE and as a teacher of transformers, and prints what came of it.
_LOAD = """
import json, sys
import torch
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.registry import make_encoder
from train.models.videomae import load_classifier

imagenet = Preprocess(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # what hf: goes by
clip = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
for name in sys.argv[1:]:
    try:
        if name.startswith("hf:"):
            model = make_encoder(TeacherConfig(encoder=name), 3, imagenet, 4).eval()
        else:
            model = load_classifier(name)
        with torch.no_grad():
            print(json.dumps(model(clip)[0].tolist()))
    except UserError as error:
        print(json.dumps(str(error)))
"""


class Hub(ThreadingHTTPServer):
    """What the client asks of a hub: a model's commit, its files, and each file. ``asked`` is every request."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.logits: list[float] = []
        self.asked: list[tuple[str, str]] = []
        self.cut = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, body: bool) -> None:
        self.server.asked.append((self.command, self.path))
        path = self.path.partition("?")[0].removeprefix("/api/models").lstrip("/")
        name = "/".join(path.split("/")[:2])
        folder = self.server.folder / name
        if not folder.is_dir():
            self._refuse(404, "RepoNotFound")
        elif name.endswith("-private") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "RepoNotFound")
        elif name.endswith("-gated") and "/resolve/" in path:
            self._refuse(403, "GatedRepo")
        elif "/resolve/" in path:
            self._file(folder / path.rpartition("/")[2], body, name.endswith("-cut"))
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)} for f in folder.iterdir()
            ]
            self._send(200, json.dumps(files).encode(), body)
        else:
            names = [{"rfilename": file.name} for file in folder.iterdir()]
            found = {"id": name, "sha": COMMIT, "siblings": names, "private": False, "tags": [], "downloads": 0}
            self._send(200, json.dumps(found).encode(), body)

    def _file(self, file: Path, body: bool, cut: bool) -> None:
        if not file.is_file():
            self._refuse(404, "EntryNotFound")
        elif cut and body and file.suffix == ".safetensors":
            self.server.cut += 1
            whole = file.read_bytes()
            self._head(200, len(whole), {"ETag": _etag(file), "X-Repo-Commit": COMMIT})
            if self.server.cut == 1:  # half of it once, and nothing afterwards
                self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
        else:
            self._send(200, file.read_bytes(), body, {"ETag": _etag(file), "X-Repo-Commit": COMMIT})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", True, {"X-Error-Code": code, "X-Error-Message": f"{code}, says the test"})

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(content), headers or {"Content-Type": "application/json"})
        if body:
            self.wfile.write(content)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub of one small VideoMAE, under a name for each way it is kept."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**VIDEOMAE))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    with torch.no_grad():
        clip = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        logits = model.eval()(clip.transpose(1, 2)).logits[0]
    for name in ("small", "small-private", "small-gated", "small-cut"):
        model.save_pretrained(folder / "owner" / name)
    pickled = folder / "owner" / "small-pickled"
    model.save_pretrained(pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    server = Hub(folder)
    server.logits = logits.tolist()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def load(endpoint: str, home: Path, *names: str, **environment: str) -> list[Any]:
    """Logits or the error of each name, in a process of its own: the client reads its variables once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    env = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run([sys.executable, "-P", "-c", _LOAD, *names], capture_output=True, text=True, env=env,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_models_come_by_name_and_are_kept_and_what_does_not_come_is_one_line(hub: Hub, tmp_path: Path) -> None:
    local, home = str(hub.folder / "owner" / "small"), tmp_path / "home"
    names = (local, "owner/small", "hf:owner/small", "owner/small-pickled", "owner/small-private", "owner/none",
             "owner/small-gated", "hf:owner/none")  # fmt: skip
    want, *found = load(hub.url, home, *names)
    assert want == pytest.approx(hub.logits, abs=1e-5)
    assert found[0] == want
    assert found[1] == pytest.approx(want, abs=1e-5)
    assert found[2] == pytest.approx(want, abs=1e-5)
    hidden = "shows no such model: check the name; if it is private, log in with  hf auth login  or HF_TOKEN"
    for name, line in zip(("owner/small-private", "owner/none", "", "owner/none"), found[3:], strict=True):
        assert not name or line == f"weights {name} are no local file or folder and the hub {hidden}"
    gated = f"gives them to those alone who accept terms: do so at {hub.url}/owner/small-gated, and log in"
    assert gated in found[5]
    assert not any("\n" in line for line in found[3:])
    assert (home / "hub" / "models--owner--small" / "snapshots" / COMMIT / "model.safetensors").is_file()
    assert not any(path.endswith(".bin") for _, path in hub.asked if "small/" in path)

    files = sum("/resolve/" in path and method == "GET" for method, path in hub.asked)
    assert load(hub.url, home, "owner/small", "owner/small-private", HF_TOKEN=TOKEN) == [want, want]
    asked = [path for method, path in hub.asked if "/resolve/" in path and method == "GET"][files:]
    assert asked
    assert all("small-private" in path for path in asked)  # the other was kept


def test_without_a_connection_what_is_kept_still_loads_and_the_rest_is_one_line(hub: Hub, tmp_path: Path) -> None:
    kept = load(hub.url, tmp_path, "owner/small")
    before = len(hub.asked)
    dead = "http://127.0.0.1:9"  # the discard port: nobody listens
    found = load(dead, tmp_path, "owner/small", "owner/other")
    assert found[0] == kept[0]
    assert re.fullmatch(
        rf"weights owner/other are no local file or folder and the hub at {dead} does not answer \(.+\): "
        "check the connection, or download the folder and give its path", found[1]
    )  # fmt: skip
    found = load(hub.url, tmp_path, "owner/small", "owner/other", HF_HUB_OFFLINE="1")
    assert found[0] == kept[0]
    assert "the hub is not asked, since HF_HUB_OFFLINE is set: unset it, or download the folder" in found[1]
    assert len(hub.asked) == before


def test_a_download_cut_midway_is_one_line_and_is_not_taken_for_whole(hub: Hub, tmp_path: Path) -> None:
    found = load(hub.url, tmp_path, "owner/small-cut", HF_HUB_DOWNLOAD_TIMEOUT="2")
    assert hub.cut > 1  # it did try again
    assert found[0].startswith("weights owner/small-cut are no local file or folder and the hub ")
    assert "\n" not in found[0]
    again = load(hub.url, tmp_path, "owner/small-cut", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in again[0]
