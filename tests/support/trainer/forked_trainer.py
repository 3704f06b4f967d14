"""Trainer pods as forks of a process that has imported torch, which saves seconds per pod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.trainer.tiny_model import QUIET_ENV
from tests.support.trainer.trainer_process import ROOT, TrainerRun

from finetune_trainer.contract import CONFIG_ENV, Reason

FORK_SCRIPT = """
import importlib, json, os, pathlib, sys
from finetune_trainer.modeling import loading
loading.import_backend(sys.argv[1])
importlib.import_module("transformers.models.llama.modeling_llama")
from finetune_trainer import __main__ as command
from tests.support.trainer import tiny_model

print("ready", flush=True)
for line in sys.stdin:
    environment = json.loads(line)
    child = os.fork()
    if child == 0:
        if "shape" in environment:
            tiny_model.build(pathlib.Path(environment["folder"]), **environment["shape"])
            os._exit(0)
        os.environ.clear()
        os.environ.update(environment)
        for number in (1, 2):
            os.dup2(os.open(environment["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.argv = ["finetune_trainer", "run"]
        command.main()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class ForkServer:
    """Starts forked trainers, one at a time."""

    process: subprocess.Popen[str]

    def read_line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def build_model(self, folder: Path, **shape: int) -> None:
        """Build a tiny model with this shape in a fork."""
        self._send({"folder": str(folder), "shape": shape})
        assert self.wait() == 0

    def _send(self, content: dict[str, Any]) -> int:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(content) + "\n")
        self.process.stdin.flush()
        return int(self.read_line())

    def start(self, run: TrainerRun, **training: Any) -> int:
        """Start a trainer. Return its process id."""
        (run.folder / "log").write_text("")
        config = json.dumps(run.config(**training).to_json())
        return self._send(run.environment | {CONFIG_ENV: config, "LOG": str(run.folder / "log")})

    def wait(self) -> int:
        """Wait for the trainer. Return its exit code, or the negative number of a signal."""
        return int(self.read_line())

    def run(self, run: TrainerRun, **training: Any) -> Reason:
        """Run a trainer to its end. Return the reason of its outcome."""
        self.start(run, **training)
        self.wait()
        return run.outcome.reason


@contextmanager
def start_fork_server(backend: str) -> Iterator[ForkServer]:
    """Start a server for trainers of this backend."""
    line = [sys.executable, "-W", "ignore", "-c", FORK_SCRIPT, backend]
    # Set one thread before torch is imported, because its thread pool does not survive a fork.
    environment = {**os.environ, **QUIET_ENV, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        line, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        server = ForkServer(process)
        while server.read_line() != "ready":  # Unsloth prints a banner first
            assert process.poll() is None
        yield server
        process.kill()
