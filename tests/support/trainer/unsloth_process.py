"""Training with Unsloth in other processes, because importing it patches the libraries of its process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.trainer.tiny_model import QUIET_ENV
from tests.support.trainer.tiny_training import TrainingOutcome, TrainingRequest, train

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

ROOT = Path(__file__).parents[3]


def serve() -> None:
    """Import Unsloth once, then run each training request from stdin in a fork."""
    warnings.simplefilter("ignore")
    from finetune_trainer.modeling import loading

    loading.import_backend("unsloth")
    out = os.fdopen(os.dup(1), "w")
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _train_and_store(json.loads(line))
            os._exit(0)
        os.waitpid(child, 0)
        print("done", file=out, flush=True)


def _train_and_store(request: dict[str, Any]) -> None:
    import torch

    folder = Path(request.pop("folder"))
    for number in (1, 2):
        os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    logging.basicConfig(level="INFO")
    torch.set_num_threads(1)
    model_dir = Path(request.pop("model_dir"))
    try:
        result = train(TrainingRequest(**request), model_dir, folder).to_json()
    except TrainerError as error:
        result = {"reason": error.reason, "message": error.message}
    (folder / "result.json").write_text(json.dumps(result))


@dataclass(frozen=True)
class UnslothProcess:
    """A process that has imported Unsloth and forks a child for each training."""

    process: subprocess.Popen[str]
    model_dir: Path

    def train(self, request: TrainingRequest, folder: Path) -> TrainingOutcome:
        """Train like `tiny_training.train`. The log is `<folder>/log`. Raises the TrainerError of the training."""
        assert self.process.stdin
        assert self.process.stdout
        line = {**asdict(request), "folder": str(folder), "model_dir": str(self.model_dir)}
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"
        assert (folder / "result.json").exists(), (folder / "log").read_text()[-3000:]
        result = json.loads((folder / "result.json").read_text())
        if "reason" in result:
            raise TrainerError(Reason(result["reason"]), result["message"])
        return TrainingOutcome.from_json(folder, result)


@contextmanager
def start_unsloth(model_dir: Path, scratch: Path) -> Iterator[UnslothProcess]:
    """Start the process and wait until it has imported Unsloth."""
    environment = {**os.environ, **QUIET_ENV, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'trainer'}", "FINETUNE_SCRATCH": str(scratch)}
    line = [sys.executable, "-c", "from tests.support.trainer import unsloth_process; unsloth_process.serve()"]
    with (
        (scratch / "log").open("w") as log,
        subprocess.Popen(
            line, env=environment, cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout
        while (greeting := process.stdout.readline().strip()) != "ready":  # Unsloth prints a banner to stdout
            assert process.poll() is None, (greeting, (scratch / "log").read_text()[-3000:])
        yield UnslothProcess(process, model_dir)
        process.kill()
