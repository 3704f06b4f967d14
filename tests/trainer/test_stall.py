"""An attempt in which nothing moves ends by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_trainer.contract import OUTCOME_PATH_ENV, Outcome, Reason

RUN = """
import pathlib, sys, time
from finetune_trainer.contract import Stage
from finetune_trainer.outcome import Known
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.stall import watched

folder, moves = pathlib.Path(sys.argv[1]), sys.argv[2]
known = Known(ProgressReporter())
known.progress.update(stage=Stage.PREPARING)
with watched(known, folder, 1.0):
    for number in range(30):
        time.sleep(0.1)
        if moves == "reports":
            known.progress.update(step=number)
        if moves == "bytes":
            with (folder / "rows").open("ab") as file:
                file.write(b"x")
"""


@pytest.mark.parametrize(
    ("moves", "status"),
    [
        pytest.param("reports", 0, id="steps are reported"),
        pytest.param("bytes", 0, id="bytes arrive on the disk"),
        pytest.param("nothing", 75, id="nothing moves"),
    ],
)
def test_only_a_run_that_stands_still_is_ended(tmp_path: Path, moves: str, status: int) -> None:
    (tmp_path / "scratch").mkdir()
    environment = os.environ | {OUTCOME_PATH_ENV: str(tmp_path / "outcome")}
    line = [sys.executable, "-c", RUN, tmp_path / "scratch", moves]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    if status:
        outcome = Outcome.model_validate_json((tmp_path / "outcome").read_bytes())
        assert outcome.reason is Reason.TRAINING_STALLED
        assert "nothing moved for 1 s while the stage was Preparing" in outcome.message
        assert "Thread 0x" in done.stderr  # the stacks
        assert "time.sleep" in done.stderr or 'File "<string>"' in done.stderr
