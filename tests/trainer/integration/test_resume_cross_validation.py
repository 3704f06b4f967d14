"""A cross-validated run that is stopped, killed or loses a checkpoint ends the same, and trains no fold again."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Reason

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

STEPS = 6
WORDS = ("lamp", "river", "stone", "bread", "winter", "bridge", "letter", "garden", "window")
ROWS = [{"prompt": f"Where is the {word}?", "completion": f"{word} " * (2 + len(word) % 4)} for word in WORDS]
TRAINING: dict[str, Any] = {
    "maxSteps": STEPS,
    "crossValidation": {"folds": 3},
    "checkpoints": {"everySteps": 2},
    "lora": {"dropout": 0.2, "rank": 4},
}
COMPARED = ("crossValidationLoss", "crossValidationDeviation", "trainLoss", "finalLoss", "steps", "tokens")
_STEP = re.compile(r"(fold \d/\d|refit): step (\d+)/\d+ loss ([\d.]+)")
_BEGUN = re.compile(r"(fold \d/\d): training on")


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    s3.put("s3://data/folds.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode())
    make = make_run_factory(s3, tmp_path, forks.build_model)

    def make_job(name: str) -> TrainerRun:
        pods = make(name)
        gate = [{"metric": "crossValidationLoss", "maximum": 100}]
        pods.changes = {"dataset": {"sources": [{"uri": "s3://data/folds.jsonl"}]}, "evaluation": {"gate": gate}}
        return pods

    return make_job


@pytest.fixture
def uninterrupted(s3: S3Server, pods: Callable[[str], TrainerRun], forks: ForkServer) -> TrainerRun:
    job = pods("whole")
    assert forks.run(job, **TRAINING) is Reason.COMPLETED, job.log
    assert len(read_fold_losses(job)) == 4 * STEPS
    evaluation = json.loads(s3.get(f"{job.output}/evaluation.json"))
    assert len(evaluation["crossValidation"]["folds"]) == 3
    assert evaluation["crossValidation"]["mean"] == evaluation["gate"][0]["value"]
    return job


def read_fold_losses(pods: TrainerRun) -> dict[tuple[str, int], str]:
    """Return the logged losses by training and step."""
    return {(name, int(step)): loss for name, step, loss in _STEP.findall(pods.log)}


def stop_after(forks: ForkServer, pods: TrainerRun, text: str, number: signal.Signals) -> dict[tuple[str, int], str]:
    """Start the run and send the signal after `text` is logged. Return the losses by training and step."""
    status = forks.run_until(pods, text, number, **TRAINING)
    assert status == (143 if number == signal.SIGTERM else -number), pods.log
    return read_fold_losses(pods)


def assert_same_result(
    s3: S3Server, pods: TrainerRun, uninterrupted: TrainerRun, trained: dict[tuple[str, int], str]
) -> None:
    assert trained | read_fold_losses(pods) == read_fold_losses(uninterrupted)
    for name in COMPARED:
        assert pods.read_metrics()[name] == uninterrupted.read_metrics()[name], name
    same = [s3.get(f"{run.output}/adapter_model.safetensors") for run in (pods, uninterrupted)]
    assert same[0] == same[1]
    assert not [key for key in s3.list_keys(pods.output) if "/." in key]


def test_cross_validation_stopped_and_killed_resumes(
    s3: S3Server, pods: Callable[[str], TrainerRun], uninterrupted: TrainerRun, forks: ForkServer
) -> None:
    job = pods("job")
    first = stop_after(forks, job, "fold 2/3: step 3/", signal.SIGTERM)
    stopped = job.outcome.progress
    assert job.outcome.reason is Reason.PREEMPTED
    assert stopped
    assert stopped.last_checkpoint_step == stopped.step
    assert STEPS + 3 <= (stopped.step or 0) <= 3 * STEPS  # on a busy machine the signal arrives some steps later
    assert stopped.total_steps == 4 * STEPS
    stopped_fold = math.ceil((stopped.step or 0) / STEPS)

    # One of the checkpoints 20, 22 and 24: of those that wait for an upload only the newest is stored.
    second = stop_after(forks, job, "stored step 2", signal.SIGKILL)
    assert f"resuming from step {stopped.step}" in job.log
    assert _BEGUN.findall(job.log) == [f"fold {fold}/3" for fold in range(stopped_fold, 4)]
    assert min(second) >= (f"fold {stopped_fold}/3", (stopped.step or 0) - (stopped_fold - 1) * STEPS)

    assert forks.run(job, **TRAINING) is Reason.COMPLETED, job.log
    assert _BEGUN.findall(job.log) == []
    assert {name for name, _ in read_fold_losses(job)} == {"refit"}
    assert min(read_fold_losses(job)) > ("refit", 1)
    assert_same_result(s3, job, uninterrupted, first | second)


def test_cross_validation_damaged_checkpoint_uses_previous_fold(
    s3: S3Server, pods: Callable[[str], TrainerRun], uninterrupted: TrainerRun, forks: ForkServer
) -> None:
    job = pods("job")
    first = stop_after(forks, job, f"stored step {2 * STEPS + 2} in", signal.SIGKILL)
    (folder,) = {key.partition("/step-")[0] for key in s3.list_keys(job.output) if "/step-" in key}
    for step in range(2 * STEPS + 1, 3 * STEPS + 1):
        marker = f"s3://results/{folder}/step-{step}/checkpoint.json"
        if marker.removeprefix("s3://results/") in s3.list_keys(job.output):
            s3.put(marker, s3.get(marker)[:-1])
    assert forks.run(job, **TRAINING) is Reason.COMPLETED, job.log
    assert f"resuming from step {2 * STEPS}" in job.log
    assert _BEGUN.findall(job.log) == ["fold 2/3", "fold 3/3"]
    assert [step for name, step in read_fold_losses(job) if name == "fold 2/3"] == [STEPS], (
        "shown again, and not trained"
    )
    assert_same_result(s3, job, uninterrupted, first)
