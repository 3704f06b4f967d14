"""Models from the hub, against a small server that speaks the hub's API."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from finetune_trainer.contract import HUB_TOKEN_FILE_ENV, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs import hub
from finetune_trainer.inputs.base_model import HubModelSource

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
ETAGS = {name: f'"{number:040x}"' for number, name in enumerate(FILES)}


class HubHandler(http.server.BaseHTTPRequestHandler):
    """`org/model` is open, `org/gated` and `org/private` are not, `org/broken` makes the hub fail."""

    protocol_version = "HTTP/1.1"
    requests: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        HubHandler.requests.append(f"{self.command} {path}")
        repo = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        refusal = self._find_error(repo, path)
        if refusal:
            self._send_answer(refusal[0], b"{}", {"X-Error-Code": refusal[1], "X-Error-Message": refusal[2]})
        elif "/resolve/" in path:
            self._send_file(path.partition("/resolve/")[2].partition("/")[2])
        elif "/tree/" in path:
            entries = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": ETAGS[name]} for name in FILES]
            self._send_answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in FILES.items()]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            self._send_answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

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
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    HubHandler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield address
        server.shutdown()


def test_hub_downloads_needed_files_of_resolved_commit(endpoint: str, tmp_path: Path) -> None:
    model = hub.resolve_snapshot("hf://org/model", "main")
    assert model.commit == COMMIT
    assert model.sizes == {name: len(content) for name, content in NEEDED.items()}
    target = tmp_path / "model"
    hub.download_snapshot(model, target)
    downloaded = {
        path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()
    }
    assert downloaded == NEEDED
    files = [path for path in HubHandler.requests if "/resolve/" in path]
    assert files
    assert all(f"/resolve/{COMMIT}/" in path for path in files)


def test_hub_config_is_read_without_the_weights(endpoint: str) -> None:
    source = HubModelSource(hub.resolve_snapshot("hf://org/model", "main"))
    assert source.read_config() == NEEDED["config.json"]
    assert {path.rpartition("/")[2] for path in HubHandler.requests if "/resolve/" in path} == {"config.json"}


@pytest.mark.parametrize(
    ("repo", "revision", "token", "reason", "message"),
    [
        ("org/model", "no-such-revision", None, Reason.MODEL_NOT_FOUND, "no such branch, tag or commit"),
        ("org/none", None, None, Reason.MODEL_NOT_FOUND, "the model does not exist or is private"),
        ("org/none", None, TOKEN, Reason.MODEL_NOT_FOUND, "the model does not exist or is private"),
        ("org/gated", None, None, Reason.AUTH_FAILED, "/org/gated and set model.tokenSecretRef"),
        ("org/gated", None, TOKEN, Reason.ACCESS_DENIED, "accept the license at"),
        ("org/forbidden", None, TOKEN, Reason.ACCESS_DENIED, "has no permission to read this model"),
        ("org/model", None, "wrong_canary", Reason.AUTH_FAILED, "the token is invalid or has expired"),
        ("org/model", None, "", Reason.AUTH_FAILED, "the Secret of model.tokenSecretRef has no key HF_TOKEN"),
        ("org/broken", None, None, Reason.STORAGE_UNREACHABLE, "the hub responded with status 500"),
    ],
)
@pytest.mark.usefixtures("endpoint")
def test_hub_error_has_reason_and_message(
    repo: str,
    revision: str | None,
    token: str | None,
    reason: Reason,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if token is not None:
        (tmp_path / "token").write_text(token + "\n")
        monkeypatch.setenv(HUB_TOKEN_FILE_ENV, str(tmp_path / "token"))
    with pytest.raises(TrainerError) as error:
        hub.resolve_snapshot(f"hf://{repo}", revision)
    assert error.value.reason is reason, error.value.message
    assert message in error.value.message
    assert "canary" not in error.value.message


def test_hub_unreachable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TrainerError, match=r"no response; check DNS, network policy and HF_ENDPOINT") as error:
        hub.resolve_snapshot("hf://org/model", None)
    assert error.value.reason is Reason.STORAGE_UNREACHABLE


def test_hub_lost_during_download_is_reported(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hub.resolve_snapshot("hf://org/model", "main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TrainerError) as error:
        hub.download_snapshot(model, tmp_path / "model")
    assert error.value.reason is Reason.STORAGE_UNREACHABLE
