"""A small server on the loopback interface that speaks the API of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_token_canary"
NEEDED = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "model.safetensors": b"w" * 1000,
    "tokenizer.model": b"sentencepiece",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool.jinja": b"{{ tools }}",
}
CLUTTER = dict.fromkeys(
    ("modeling.py", "pytorch_model.bin", "README.md", "onnx/config.json", "consolidated.safetensors", "x.gguf"), b"no"
)
FILES = NEEDED | CLUTTER
LICENSE = {"license": "other", "license_name": "org-community", "license_link": "https://example.org/license"}
CARD = {**LICENSE, "tags": ["text"], "language": ["en"]}
"""Metadata of the card of `org/model`."""
ETAGS = {name: f'"{number:040x}"' for number, name in enumerate(FILES)}


def is_outside_git(name: str) -> bool:
    """Return whether the hub stores a file outside of Git, and identifies it by its SHA-256 digest."""
    return name.endswith((".parquet", ".safetensors"))


@dataclass
class HubCommit:
    """The files of a repository at one commit."""

    files: dict[str, bytes]

    @property
    def sha(self) -> str:
        content = b"".join(name.encode() + self.files[name] for name in sorted(self.files))
        return hashlib.sha1(content, usedforsecurity=False).hexdigest()

    def list_files(self) -> list[dict[str, object]]:
        return [
            {"rfilename": name, "size": len(content), **self._describe_blob(name)}
            for name, content in self.files.items()
        ]

    def get_etag(self, name: str) -> str:
        digest = hashlib.sha256 if is_outside_git(name) else hashlib.sha1
        header = b"" if is_outside_git(name) else b"blob %d\0" % len(self.files[name])
        return digest(header + self.files[name]).hexdigest()

    def _describe_blob(self, name: str) -> dict[str, object]:
        if not is_outside_git(name):
            return {"blobId": self.get_etag(name)}
        lfs = {"sha256": self.get_etag(name), "size": len(self.files[name]), "pointerSize": 130}
        return {"blobId": "0" * 40, "lfs": lfs}


@dataclass
class HubDatasets:
    """The datasets of the server: commits by repository and revision."""

    commits: dict[tuple[str, str], HubCommit] = field(default_factory=dict)

    def push(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Store a commit and move the branch to it. Returns its SHA."""
        commit = HubCommit(files)
        self.commits[repo, branch] = self.commits[repo, commit.sha] = commit
        return commit.sha


class HubHandler(http.server.BaseHTTPRequestHandler):
    """`org/model` is open, `org/gated` and `org/private` are not, `org/broken` makes the hub fail. Datasets with these
    names behave in the same way, and the others are those in `datasets`."""

    protocol_version = "HTTP/1.1"
    requests: list[str]
    datasets: HubDatasets

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        HubHandler.requests.append(f"{self.command} {path}")
        for prefix in ("/api/datasets", "/datasets"):
            if path.startswith(prefix):
                return self._answer_dataset_request(path.removeprefix(prefix))
        repo = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        refusal = self._find_error(repo, path)
        if refusal:
            self._send_refusal(*refusal)
        elif "/resolve/" in path:
            self._send_file(path.partition("/resolve/")[2].partition("/")[2])
        elif "/tree/" in path:
            entries = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": ETAGS[name]} for name in FILES]
            self._send_answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            siblings = HubCommit(FILES).list_files()
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "cardData": CARD}
            self._send_answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _answer_dataset_request(self, path: str) -> None:
        """Answer `/org/name/revision/REVISION` or `/org/name/resolve/REVISION/FILE`."""
        owner, name, _, revision, *file = path.strip("/").split("/", 4)
        repo, key = f"{owner}/{name}", (f"{owner}/{name}", unquote(revision))
        known = any(repo == known_repo for known_repo, _ in self.datasets.commits)
        refusal = None if known else self._find_error(repo, path)
        commit = self.datasets.commits.get(key)
        if refusal:
            self._send_refusal(*refusal)
        elif commit is None:
            self._send_refusal(404, "RevisionNotFound", "Invalid rev id")
        elif not file:
            info = {"id": repo, "sha": commit.sha, "siblings": commit.list_files()}
            self._send_answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        else:
            file_name = unquote(file[0])
            headers = {"ETag": f'"{commit.get_etag(file_name)}"', "X-Repo-Commit": commit.sha}
            self._send_answer(200, commit.files[file_name], headers)

    def _send_refusal(self, status: int, code: str, message: str) -> None:
        self._send_answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _find_error(self, repo: str, path: str) -> tuple[int, str, str] | None:
        token = self.headers.get("Authorization", "")
        if repo == "org/broken":
            return 500, "", "oops"
        if token and TOKEN not in token:
            return 401, "", "Invalid credentials in Authorization header"
        if repo == "org/gated":
            return (403 if token else 401), "GatedRepo", "gated"
        if repo == "org/forbidden":
            return 403, "", "no"
        if repo != "org/model":
            return 401, "RepoNotFound", "Repository not found"
        if "no-such-revision" in path:
            return 404, "RevisionNotFound", "Invalid rev id"
        return None

    def _send_file(self, name: str) -> None:
        headers = {"ETag": ETAGS[name], "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream"}
        self._send_answer(200, FILES[name], headers)

    def _send_answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    HubHandler.requests, HubHandler.datasets = [], HubDatasets()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield address
        server.shutdown()
