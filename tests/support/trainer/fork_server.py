"""Trainers and trainings as forks of a process that has imported the libraries, so that each starts seconds sooner."""

from __future__ import annotations

import importlib
import json
import logging
import os
import pkgutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.trainer.tiny_model import QUIET_ENV
from tests.support.trainer.tiny_training import TrainingOutcome, TrainingRequest
from tests.support.trainer.trainer_process import ROOT, TrainerRun

from finetune_trainer.contract import CONFIG_ENV, SCRATCH_ENV, Reason
from finetune_trainer.errors import TrainerError

_OPTIONAL_MODULES = ("unsloth_backend", "mlflow_backend", "wandb_backend", "tensorboard_files")


def serve(backend: str) -> None:
    """Answer requests on stdin: fork a child for an action and return its process id, or wait for a child and return
    its exit status.
    """
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Unsloth greets on stdout
    _import_everything(backend)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            _ACTIONS[request.pop("action")](**request)
            os._exit(0)
        print(answer, file=answers, flush=True)


def _import_everything(backend: str) -> None:
    """Import the libraries, and all modules of the trainer that a run imports as it needs them."""
    import finetune_trainer
    from finetune_trainer.modeling import backends

    backends.import_backend(backend)
    importlib.import_module("transformers.models.llama.modeling_llama")
    for module in pkgutil.walk_packages(finetune_trainer.__path__, "finetune_trainer."):
        if not module.name.endswith(_OPTIONAL_MODULES):
            importlib.import_module(module.name)


def _run_trainer(environment: dict[str, str], log: str) -> None:
    from finetune_trainer import __main__ as command

    os.environ.clear()
    os.environ.update(environment)
    _redirect_output(Path(log))
    sys.argv = ["finetune_trainer", "run"]
    command.main()


def _run_script(source: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    exec(compile(source, "script", "exec"), {"__name__": "__main__"})


def _build_model(folder: str, shape: dict[str, int]) -> None:
    from tests.support.trainer import tiny_model

    tiny_model.build(Path(folder), **shape)


def _train(request: dict[str, Any], model_dir: str, folder: str) -> None:
    """Train, and leave the result or the error in `<folder>/result.json`."""
    import torch
    from tests.support.trainer import tiny_training

    _redirect_output(Path(folder) / "log")
    logging.basicConfig(level="INFO")
    torch.set_num_threads(1)
    try:
        result = tiny_training.train(TrainingRequest(**request), Path(model_dir), Path(folder)).to_json()
    except TrainerError as error:
        result = {"reason": error.reason, "message": error.message}
    (Path(folder) / "result.json").write_text(json.dumps(result))


def _redirect_output(log: Path) -> None:
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


_ACTIONS = {"run": _run_trainer, "script": _run_script, "build": _build_model, "train": _train}


@dataclass(frozen=True)
class ForkServer:
    """Starts trainers and trainings, any number at a time."""

    process: subprocess.Popen[str]

    def build_model(self, folder: Path, **shape: int) -> None:
        """Write a tiny model of that shape."""
        assert self.wait(self._request(action="build", folder=str(folder), shape=shape)) == 0

    def start(self, run: TrainerRun, **training: Any) -> int:
        """Start a trainer that writes its run's log, and return its process id."""
        config = json.dumps(run.config(**training).to_json())
        (run.folder / "log").write_text("")
        return self._request(
            action="run", environment=run.environment | {CONFIG_ENV: config}, log=str(run.folder / "log")
        )

    def start_script(self, source: str, environment: dict[str, str]) -> int:
        """Start Python code with these variables added to the environment, and return its process id."""
        return self._request(action="script", source=source, environment=environment)

    def wait(self, child: int) -> int:
        """Return the exit status of a child, or the number of the signal that ended it, negative."""
        return self._request(wait=child)

    def run(self, run: TrainerRun, **training: Any) -> Reason:
        """Start a trainer, wait for its end and return the reason in its outcome."""
        self.wait(self.start(run, **training))
        return run.outcome.reason

    def run_until(self, run: TrainerRun, text: str, number: signal.Signals, **training: Any) -> int:
        """Start a trainer, send it a signal once its log has the text, and return its exit status."""
        child = self.start(run, **training)
        run.wait_for_log(text)
        os.kill(child, number)
        return self.wait(child)

    def train(self, request: TrainingRequest, model_dir: Path, folder: Path) -> TrainingOutcome:
        """Train as `tiny_training.train` does, with the log in `<folder>/log`."""
        child = self._request(action="train", request=asdict(request), model_dir=str(model_dir), folder=str(folder))
        assert self.wait(child) == 0, (folder / "log").read_text()[-3000:]
        result = json.loads((folder / "result.json").read_text())
        if "reason" in result:
            raise TrainerError(Reason(result["reason"]), result["message"])
        return TrainingOutcome.from_json(folder, result)

    def _request(self, **content: Any) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(content) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def start_fork_server(backend: str, scratch: Path) -> Iterator[ForkServer]:
    """Start the server of a backend. Unsloth changes the libraries of its process, so it needs a server of its own."""
    line = [sys.executable, "-c", f"from tests.support.trainer import fork_server; fork_server.serve({backend!r})"]
    # One thread, before torch is imported: its pool of threads does not survive a fork.
    environment = {**os.environ, **QUIET_ENV, "OMP_NUM_THREADS": "1", SCRATCH_ENV: str(scratch)}
    environment["PYTHONPATH"] = str(ROOT)
    with (
        (scratch / "log").open("w") as log,
        subprocess.Popen(
            line, env=environment, cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout
        assert process.stdout.readline() == "ready\n", (scratch / "log").read_text()[-3000:]
        yield ForkServer(process)
        process.kill()
