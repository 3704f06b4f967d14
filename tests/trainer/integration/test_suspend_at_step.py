"""A run that stops at a step evaluates and saves there, and has the result of an uninterrupted run when it resumes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory
from tests.support.trainer.worker_processes import make_group_factory

from finetune_trainer.contract import SUSPEND_AT_STEP_ENV, Reason, StepResult

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

STEPS = 8
PREFERENCES = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No " * (1 + n % 5)} for n in range(16)]
TEXTS = [{"prompt": f"What is {n}?", "completion": f"It is {'very ' * (n % 5)}{n}."} for n in range(90)]
COMPARED = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens", "baseEvalLoss", "evalLoss", "bestStep")
VALIDATION_LINE = re.compile(r"validation loss .*")
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "packed sft with early stopping, no evaluation due": (
        5,
        {
            "packing": True,
            "earlyStopping": {"patience": 1000},
            "evalSteps": 2,
            "learningRate": 0.3,
            "scheduler": "constant",
        },
    ),
    "kto, evaluation due": (4, {"method": "kto", "batchSize": 2}),
}


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    for name, rows in (("preferences", PREFERENCES), ("texts", TEXTS)):
        s3.put(f"s3://data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return make_run_factory(s3, tmp_path, forks.build_model)


def set_inputs(run: TrainerRun, method: str = "sft", fraction: float | None = 0.25) -> TrainerRun:
    source = {"uri": f"s3://data/{'texts' if method == 'sft' else 'preferences'}.jsonl"}
    run.changes = {"dataset": {"sources": [source], **({"validation": {"fraction": fraction}} if fraction else {})}}
    return run


def stop_at(forks: ForkServer, run: TrainerRun, step: int, **training: Any) -> StepResult:
    """Run until the step, and return its result."""
    run.environment[SUSPEND_AT_STEP_ENV] = str(step)
    assert forks.run(run, **training) is Reason.STEP_REACHED, run.log
    del run.environment[SUSPEND_AT_STEP_ENV]
    assert run.outcome.step_result, run.outcome
    return run.outcome.step_result


def read_published(run: TrainerRun, name: str) -> bytes:
    return run.s3.get(f"{run.output}/{name}")


@pytest.mark.parametrize(("step", "training"), CASES.values(), ids=CASES)
def test_suspended_run_resumes_to_result_of_uninterrupted_run(
    pods: Callable[[str], TrainerRun], forks: ForkServer, step: int, training: dict[str, Any]
) -> None:
    settings = {"maxSteps": STEPS, "checkpoints": {"everySteps": 1000}, "evalSteps": 4, **training}
    method = training.get("method", "sft")
    uninterrupted, suspended = (set_inputs(pods(name), method) for name in ("whole", "parted"))
    assert forks.run(uninterrupted, **settings) is Reason.COMPLETED, uninterrupted.log
    result = stop_at(forks, suspended, step, **settings)
    assert result.step == step
    if method == "sft":
        assert result.eval_loss_low is not None
        assert result.eval_loss_high is not None
        assert result.eval_loss_low < result.eval_loss < result.eval_loss_high
    losses = suspended.read_losses()
    assert max(losses) == step

    assert forks.run(suspended, **settings) is Reason.COMPLETED, suspended.log
    assert min(suspended.read_losses()) == step + 1
    assert losses | suspended.read_losses() == uninterrupted.read_losses()
    for name in COMPARED:
        assert suspended.read_metrics().get(name) == uninterrupted.read_metrics().get(name), name
    assert read_published(suspended, "adapter_model.safetensors") == read_published(
        uninterrupted, "adapter_model.safetensors"
    )
    evaluations = [
        VALIDATION_LINE.findall(read_published(run, "run.log").decode()) for run in (uninterrupted, suspended)
    ]
    assert evaluations[0] == evaluations[1]


def test_suspended_run_publishes_nothing_and_keeps_its_answer(
    s3: S3Server, pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    run, settings = set_inputs(pods("job"), fraction=None), {"maxSteps": STEPS, "checkpoints": {"everySteps": 1000}}
    result = stop_at(forks, run, 5, **settings)
    assert f"{result.eval_loss:.4f}" == run.read_losses()[5], "the training loss, since there is no validation data"
    assert (result.step, result.eval_loss_low, result.eval_loss_high) == (5, None, None)
    assert "stopped at step 5 of 8, whose checkpoint is stored; the training loss is" in run.outcome.message
    progress = run.outcome.progress
    assert progress
    assert (progress.step, progress.last_checkpoint_step, progress.percentage) == (5, 5, 100 * 5 // STEPS)
    log = s3.get(run.outcome.log_uri or "").decode()
    assert "the training stops at step 5 of 8" in log
    assert "step 5/8" in log
    folders = {
        key.removeprefix(f"{run.output}/".partition("//")[2].partition("/")[2]) for key in s3.list_keys(run.output)
    }
    assert {folder.partition("/")[0] for folder in folders} == {".checkpoints"}, folders

    assert stop_at(forks, run, 3, **settings) == result, "the checkpoint is past the step"
    assert list(run.read_losses()) == [5], "nothing is trained again"
    run.environment[SUSPEND_AT_STEP_ENV] = str(STEPS + 1)
    assert forks.run(run, **settings) is Reason.COMPLETED, run.log
    assert "the training ends at step 8, before step 9 to stop at" in run.log


def test_suspended_ranks_resume_to_result_of_uninterrupted_ranks(
    s3: S3Server, pods: Callable[[str], TrainerRun], tmp_path: Path, forks: ForkServer
) -> None:
    (tmp_path / "ranks").mkdir()
    data = {"sources": [{"uri": "s3://data/preferences.jsonl"}], "validation": {"fraction": 0.25}}
    make_group = make_group_factory(s3, tmp_path / "ranks", forks)
    uninterrupted, suspended = (make_group(name, 2, dataset=data) for name in ("whole", "parted"))
    settings = {"method": "dpo", "maxSteps": STEPS, "checkpoints": {"everySteps": 1000}, "evalSteps": 4}
    assert uninterrupted.run(**settings) == [0, 0], uninterrupted.logs
    for pod in suspended.pods:
        pod.environment[SUSPEND_AT_STEP_ENV] = "3"
    assert suspended.run(**settings) == [0, 0], suspended.logs
    assert [pod.outcome.reason for pod in suspended.pods] == [Reason.STEP_REACHED] * 2
    result = suspended.rank_zero.outcome.step_result
    assert result
    assert (result.step, suspended.pods[1].outcome.step_result) == (3, None)
    for pod in suspended.pods:
        del pod.environment[SUSPEND_AT_STEP_ENV]
    assert suspended.run(**settings) == [0, 0], suspended.logs
    assert min(suspended.rank_zero.read_losses()) == 4
    adapters = [read_published(group.rank_zero, "adapter_model.safetensors") for group in (uninterrupted, suspended)]
    assert adapters[0] == adapters[1]
