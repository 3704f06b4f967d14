"""Kubeconfig files that cannot be used: each is one sentence that names the file and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.client import ClientError
from finetune_operator.client.connection import connect


def build_kubeconfig(cluster: dict[str, Any], user: dict[str, Any], **fields: Any) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        **fields,
    }
    return yaml.safe_dump(config)


TOKEN = {"token": "secret"}
EXEC = {
    "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin", "interactiveMode": "Never"}
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "it is not a kubeconfig"),
        ("", "file is empty"),
        ("[", "cannot read the kubeconfig"),
        (build_kubeconfig({}, TOKEN, **{"current-context": ""}), "has no current-context"),
        (build_kubeconfig({}, TOKEN, **{"current-context": "y"}), "cannot read the kubeconfig"),
        (
            build_kubeconfig({"server": "127.0.0.1"}, TOKEN),
            "the server 127.0.0.1 of cluster c in the kubeconfig has no",
        ),
        (build_kubeconfig({"proxy-url": "foo"}, TOKEN), "the proxy foo for the API server is invalid"),
        (build_kubeconfig({}, {"token": "secret\nsecret"}), "the token of the kubeconfig has a line break"),
        (build_kubeconfig({}, {"client-certificate-data": "abc", "client-key-data": "abc"}), "is not base64"),
        (
            build_kubeconfig({}, EXEC),
            "credential plug-in (exec) works: [Errno 2] No such file or directory: 'no-such-plug",
        ),
    ],
)
def test_connect_unusable_kubeconfig_says_what_is_wrong(
    tmp_path: Path, text: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)

    with pytest.raises(ClientError) as caught:
        connect(None, path)

    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert capfd.readouterr().err == ""
