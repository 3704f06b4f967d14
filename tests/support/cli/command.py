"""Calls of the command line, in this process and in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_cli.app import run

SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Answer:
    """What a command has printed, and its exit status."""

    status: int
    stdout: str
    stderr: str


class CommandLine:
    """Calls commands in this process and returns their output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Answer:
        self._capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Answer(status, captured.out, captured.err)


def run_finetune(
    *arguments: str | Path, stdin: str = "", environment: Mapping[str, str] | None = None, program: str = "finetune"
) -> Answer:
    """Run a command in a process of its own, without a terminal."""
    result = subprocess.run(
        [SCRIPTS / program, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    return Answer(result.returncode, result.stdout, result.stderr)
