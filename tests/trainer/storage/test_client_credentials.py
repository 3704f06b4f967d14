"""A pod without a credentials Secret uses its service account, and the identity of the node only if allowed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import pytest

from finetune_trainer.contract import S3_CREDENTIALS_DIR_ENV, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import S3
from finetune_trainer.storage.client import _create_session

EXPIRES = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
METADATA_DISABLED_ENV = "AWS_EC2_METADATA_DISABLED"
_STS = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>irsa</AccessKeyId><SecretAccessKey>s</SecretAccessKey>
<SessionToken>t</SessionToken><Expiration>{}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


class _CloudHandler(BaseHTTPRequestHandler):
    """Instance metadata (IMDSv2), EKS' agent of Pod Identity, and STS."""

    server: CloudServer

    def do_PUT(self) -> None:
        self._send_answer("a-session-token")

    def do_POST(self) -> None:
        self._send_answer(_STS.format(EXPIRES), "text/xml")

    def do_GET(self) -> None:
        if self.path.endswith("/security-credentials/"):
            return self._send_answer("node-role")
        key = "pod-identity" if self.path == "/v1/credentials" else "node"
        keys = {"AccessKeyId": key, "SecretAccessKey": "s", "Token": "t", "Expiration": EXPIRES, "Code": "Success"}
        return self._send_answer(json.dumps(keys), "application/json")

    def _send_answer(self, text: str, kind: str = "text/plain") -> None:
        self.server.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class CloudServer(HTTPServer):
    def __init__(self) -> None:
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _CloudHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CloudServer]:
    """Simulate the metadata service of a node with an identity, and remove all other credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")] + [S3_CREDENTIALS_DIR_ENV]:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("no_proxy", "*")
    with CloudServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        yield server
        server.shutdown()


def _read_key_id(session: boto3.Session) -> str:
    credentials = session.get_credentials()
    assert credentials
    return str(credentials.get_frozen_credentials().access_key)


def test_session_metadata_disabled_never_uses_node_identity(
    cloud: CloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(METADATA_DISABLED_ENV, "true")
    with pytest.raises(TrainerError) as error:
        S3(Storage()).bucket("data")
    assert error.value.reason is Reason.AUTH_FAILED
    for advice in ("storage.credentialsSecretRef", "compute.serviceAccountName", "defaults.allowNodeIdentity"):
        assert advice in error.value.message
    assert cloud.requests == []


def test_session_metadata_enabled_uses_node_identity(cloud: CloudServer) -> None:
    assert _read_key_id(_create_session(None)) == "node"
    assert cloud.requests


def test_session_pod_identity_works_without_metadata(cloud: CloudServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METADATA_DISABLED_ENV, "true")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{cloud.url}/v1/credentials")
    assert _read_key_id(_create_session(None)) == "pod-identity"
    assert set(cloud.requests) == {"/v1/credentials"}


def test_session_irsa_works_without_metadata(
    cloud: CloudServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(METADATA_DISABLED_ENV, "true")
    (tmp_path / "token").write_text("a-service-account-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/finetune")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
    assert _read_key_id(_create_session(None)) == "irsa"


def test_session_profile_works_without_metadata(
    cloud: CloudServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(METADATA_DISABLED_ENV, "true")
    (tmp_path / "none").write_text("[work]\naws_access_key_id = profile\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert _read_key_id(_create_session(None)) == "profile"
    assert cloud.requests == []
