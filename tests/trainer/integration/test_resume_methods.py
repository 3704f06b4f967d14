"""A run of any method that is stopped and resumed has the same result as an uninterrupted run."""

from __future__ import annotations

import json
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

STEPS = 12
COMPARED = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens", "baseEvalLoss", "evalLoss", "bestStep")
PREFERENCES = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No " * (1 + n % 5)} for n in range(16)]
PROMPTS = [{"prompt": f"Say {n}."} for n in range(16)]
GRADERS = [{"name": "long", "length": {"minimum": 14, "unit": "characters"}}]
ROLLOUTS: dict[str, Any] = {
    "batchSize": 4, "gradientAccumulation": 2, "rewards": [{"grader": "long"}],
    "rollout": {"generations": 4, "maxNewTokens": 6}, "lora": {"rank": 4},
}  # fmt: skip
"""Two prompts in a step, so that an epoch has six steps."""
INPUTS = {"dpo": "preferences", "kto": "preferences", "grpo": "prompts", "rloo": "prompts"}
CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"method": "dpo"},
    "kto": {"method": "kto", "batchSize": 2},
    "packed": {"packing": True},
    "best taken": {"earlyStopping": {"patience": 1000}, "evalSteps": 1, "learningRate": 0.3, "scheduler": "constant"},
    "nf4 dora": {"lora": {"variant": "dora", "rank": 4, "dropout": 0.1}},
}


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    for name, rows in (("preferences", PREFERENCES), ("prompts", PROMPTS)):
        s3.put(f"s3://data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return make_run_factory(s3, tmp_path, forks.build_model)


def set_inputs(pods: TrainerRun, training: dict[str, Any], **model: str) -> TrainerRun:
    """Set the rows of the method, with a quarter of them for validation."""
    name = INPUTS.get(training.get("method", "sft"), "resume")
    pods.changes = {
        "dataset": {"sources": [{"uri": f"s3://data/{name}.jsonl"}], "validation": {"fraction": 0.25}},
        "model": dict(model),
        "evaluation": {"graders": GRADERS, "maxNewTokens": 6} if "rewards" in training else {},
    }
    return pods


def stop_after(forks: ForkServer, pods: TrainerRun, text: str, training: dict[str, Any]) -> int:
    """Stop the run with SIGTERM after `text` is logged. Return its last stored step."""
    status = forks.run_until(pods, text, signal.SIGTERM, **training)
    assert (status, pods.outcome.reason) == (143, Reason.PREEMPTED), pods.log
    assert pods.outcome.progress
    assert pods.outcome.progress.last_checkpoint_step
    return pods.outcome.progress.last_checkpoint_step


def assert_resume_matches(
    forks: ForkServer, pods: Callable[[str], TrainerRun], training: dict[str, Any], **model: str
) -> tuple[TrainerRun, TrainerRun]:
    """Return the uninterrupted and the interrupted run."""
    settings = {"maxSteps": STEPS, "checkpoints": {"everySteps": 1000}, **training}
    if "rewards" not in training:
        settings = {"evalSteps": 4, **settings}
    uninterrupted, interrupted = (set_inputs(pods(name), training, **model) for name in ("whole", "parted"))
    assert forks.run(uninterrupted, **settings) is Reason.COMPLETED, uninterrupted.log
    stopped_at = stop_after(forks, interrupted, f"step {STEPS // 2}/", settings)
    before = interrupted.read_losses()
    assert forks.run(interrupted, **settings) is Reason.COMPLETED, interrupted.log
    assert f"resuming from step {stopped_at}" in interrupted.log
    log = interrupted.s3.get(f"{interrupted.output}/run.log").decode()
    assert f"step {STEPS // 2}/{STEPS} " in log, "the log of the first attempt is kept"
    assert f"step {STEPS}/{STEPS} " in log
    # Where the last step was saved, it is shown again.
    assert before | interrupted.read_losses() == uninterrupted.read_losses()
    assert len(uninterrupted.read_losses()) == STEPS
    for name in uninterrupted.read_metrics().keys() & {*COMPARED, "long"}:
        assert interrupted.read_metrics()[name] == pytest.approx(uninterrupted.read_metrics()[name], abs=1e-6), name
    return uninterrupted, interrupted


@pytest.mark.parametrize("training", CASES.values(), ids=CASES)
def test_resume_each_method_matches_uninterrupted(
    pods: Callable[[str], TrainerRun], forks: ForkServer, training: dict[str, Any]
) -> None:
    assert_resume_matches(forks, pods, training, quantization="nf4" if training.get("lora") else "none")


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_resume_policy_method_publishes_the_same_adapter(
    pods: Callable[[str], TrainerRun], forks: ForkServer, method: str
) -> None:
    runs = assert_resume_matches(forks, pods, {"method": method, **ROLLOUTS})
    same = [run.s3.get(f"{run.output}/adapter_model.safetensors") for run in runs]
    assert same[0] == same[1]
    rewards = [json.loads(run.s3.get(f"{run.output}/evaluation.json"))["rewards"] for run in runs]
    assert rewards[0] == rewards[1]
    assert len({point["reward"] for point in rewards[0]}) > 3


def test_resume_dpo_from_adapter_matches_uninterrupted(pods: Callable[[str], TrainerRun], forks: ForkServer) -> None:
    first = pods("first")
    assert forks.run(first, maxSteps=6) is Reason.COMPLETED, first.log
    runs = assert_resume_matches(forks, pods, {"method": "dpo", "learningRate": 1e-3}, adapterURI=first.output)
    assert runs[0].read_losses()[1] == "0.6931"
    same = [run.s3.get(f"{run.output}/adapter_model.safetensors") for run in runs]
    assert same[0] == same[1]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_resume_unsloth_matches_uninterrupted(
    pods: Callable[[str], TrainerRun], unsloth_forks: ForkServer, method: str
) -> None:
    assert_resume_matches(unsloth_forks, pods, {"backend": "unsloth", "method": method})


def test_resume_after_early_stop_publishes_without_steps(pods: Callable[[str], TrainerRun], forks: ForkServer) -> None:
    stopping = {"earlyStopping": {"patience": 2, "minDelta": 1000}, "evalSteps": 1, "maxSteps": STEPS}
    settings = {**stopping, "checkpoints": {"everySteps": 1000}, "learningRate": 0.3, "scheduler": "constant"}
    uninterrupted, interrupted = (set_inputs(pods(name), {}) for name in ("whole", "parted"))
    assert forks.run(uninterrupted, **settings) is Reason.COMPLETED, uninterrupted.log
    assert uninterrupted.read_metrics()["steps"] == 3
    assert stop_after(forks, interrupted, "stored step 3 in", settings) == 3
    assert forks.run(interrupted, **settings) is Reason.COMPLETED, interrupted.log
    assert list(interrupted.read_losses()) == [3]
    assert interrupted.read_metrics()["evalLoss"] == uninterrupted.read_metrics()["evalLoss"]
    same = [run.s3.get(f"{run.output}/adapter_model.safetensors") for run in (uninterrupted, interrupted)]
    assert same[0] == same[1]


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_resume_after_last_step_publishes_without_steps(
    s3: S3Server, pods: Callable[[str], TrainerRun], forks: ForkServer, method: str
) -> None:
    training = {"method": method, "batchSize": 2, "gradientAccumulation": 1, "checkpoints": {"everySteps": 1000}}
    settings = {"maxSteps": STEPS - 1, **training}  # in the middle of an epoch
    uninterrupted, interrupted = (set_inputs(pods(name), training) for name in ("whole", "parted"))
    assert forks.run(uninterrupted, **settings) is Reason.COMPLETED, uninterrupted.log
    assert stop_after(forks, interrupted, f"step {STEPS - 1}/{STEPS - 1}", settings) == STEPS - 1
    first = interrupted.log
    assert forks.run(interrupted, **settings) is Reason.COMPLETED, interrupted.log
    assert list(interrupted.read_losses()) == [STEPS - 1]
    for name in COMPARED:
        assert interrupted.read_metrics()[name] == pytest.approx(uninterrupted.read_metrics()[name], abs=1e-6), (
            name,
            first,
        )
    same = [s3.get(f"{run.output}/adapter_model.safetensors") for run in (uninterrupted, interrupted)]
    assert same[0] == same[1]
    assert interrupted.read_metrics()["tokensPerSecond"] == pytest.approx(
        interrupted.read_metrics()["tokens"] / interrupted.read_metrics()["trainSeconds"], rel=0.01
    )
    assert not [key for key in s3.list_keys(interrupted.output) if "/." in key]
