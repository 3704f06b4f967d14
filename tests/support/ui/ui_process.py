"""The command `finetune ui` as a process, and the kubeconfig that it reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.trainer.s3_server import KEY_ID, SECRET


class UiServer:
    """A running server: its address, and its token."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.origin = f"http://{parts.netloc}"
        self.port = parts.port or 0
        self.token = parse_qs(parts.query)["token"][0]
        self.cookie = f"finetune-ui-{self.port}={self.token}"


def write_kubeconfig(folder: Path, server: str, token: str) -> Path:
    """Write a kubeconfig for a server with a certificate of its own."""
    path = folder / "kubeconfig"
    cluster = f'{{server: "{server}", insecure-skip-tls-verify: true}}'
    path.write_text(f"""
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test, namespace: support}}}}]
clusters: [{{name: test, cluster: {cluster}}}]
users: [{{name: test, user: {{token: "{token}"}}}}]
""")
    return path


@contextmanager
def run_ui(arguments: Sequence[str | Path]) -> Iterator[UiServer]:
    """Run `finetune ui` until the end of the block."""
    environment = {
        **os.environ, "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [sys.executable, "-m", "finetune_cli", "ui", "--no-open", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield UiServer(process.stdout.readline().strip())
        finally:
            process.terminate()
            process.wait(10)
