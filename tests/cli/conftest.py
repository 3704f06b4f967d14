"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.cli.command import CommandLine


@pytest.fixture
def finetune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """Return a function that runs a command in this process. There is no kubeconfig unless a test sets one."""
    monkeypatch.setattr("sys.argv", ["finetune"])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.delenv("FINETUNE_S3_ENDPOINT", raising=False)
    return CommandLine(capsys)


@pytest.fixture
def manifest_file(tmp_path: Path, finetune: CommandLine) -> Path:
    """Return the file of a valid manifest."""
    path = tmp_path / "job.yaml"
    path.write_text(finetune("init", "--name", "bot", "--data", "s3://data/a.jsonl").stdout)
    return path
