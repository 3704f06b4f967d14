"""Told to stop in the middle, or after the last step, a run of any method ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.trainer.forked_pods import start_forks
from tests.trainer.pods import Pods, make_pods

from finetune_trainer.contract import Reason

if TYPE_CHECKING:
    from tests.trainer.forked_pods import Forks
    from tests.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

STEPS = 12
COMPARED = ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens", "baseEvalLoss", "evalLoss", "bestStep")
PREFERENCES = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No " * (1 + n % 5)} for n in range(16)]
CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"method": "dpo"},
    "kto": {"method": "kto", "batchSize": 2},
    "packed": {"packing": True},
    "best taken": {"earlyStopping": {"patience": 1000}, "evalSteps": 1, "learningRate": 0.3, "scheduler": "constant"},
    "nf4 dora": {"lora": {"variant": "dora", "rank": 4, "dropout": 0.1}},
}


@pytest.fixture(scope="module")
def unsloth_forks() -> Iterator[Forks]:
    with start_forks("unsloth") as started:
        yield started


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: Forks) -> Callable[[str], Pods]:
    s3.put("s3://data/preferences.jsonl", "".join(json.dumps(each) + "\n" for each in PREFERENCES).encode())
    return make_pods(s3, tmp_path, forks.build)


def prepared(pods: Pods, training: dict[str, Any], quantization: str) -> Pods:
    """With the method's rows, four of them to look at."""
    name = "resume" if training.get("method", "sft") == "sft" else "preferences"
    pods.changes = {
        "dataset": {"sources": [{"uri": f"s3://data/{name}.jsonl"}], "validation": {"fraction": 0.25}},
        "model": {"quantization": quantization},
    }
    return pods


def stop_after(forks: Forks, pods: Pods, text: str, training: dict[str, Any]) -> int:
    """Its last stored step."""
    child = forks.start(pods, **training)
    deadline = time.monotonic() + 200
    while text not in pods.log:
        assert time.monotonic() < deadline, pods.log
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert (forks.wait(), pods.outcome.reason) == (143, Reason.PREEMPTED), pods.log
    assert pods.outcome.progress
    assert pods.outcome.progress.last_checkpoint_step
    return pods.outcome.progress.last_checkpoint_step


def check(forks: Forks, pods: Callable[[str], Pods], training: dict[str, Any], quantization: str = "none") -> None:
    asked = {"maxSteps": STEPS, "checkpoints": {"everySteps": 1000}, "evalSteps": 4, **training}
    whole, parted = (prepared(pods(name), training, quantization) for name in ("whole", "parted"))
    assert forks.run(whole, **asked) is Reason.COMPLETED, whole.log
    stopped_at = stop_after(forks, parted, f"step {STEPS // 2}/", asked)
    before = parted.losses()
    assert forks.run(parted, **asked) is Reason.COMPLETED, parted.log
    assert f"going on from step {stopped_at}" in parted.log
    told = parted.s3.get(f"{parted.output}/run.log").decode()
    assert f"step {STEPS // 2}/{STEPS} " in told, "the first attempt's"
    assert f"step {STEPS}/{STEPS} " in told
    # Where the last step was saved, it is shown again.
    assert before | parted.losses() == whole.losses()
    assert len(whole.losses()) == STEPS
    for name in COMPARED:
        assert parted.metrics()[name] == pytest.approx(whole.metrics()[name], abs=1e-6), name


@pytest.mark.parametrize("training", CASES.values(), ids=CASES)
def test_goes_on(pods: Callable[[str], Pods], forks: Forks, training: dict[str, Any]) -> None:
    check(forks, pods, training, "nf4" if training.get("lora") else "none")


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_goes_on_with_unsloth(pods: Callable[[str], Pods], unsloth_forks: Forks, method: str) -> None:
    check(unsloth_forks, pods, {"backend": "unsloth", "method": method})


def test_stopped_after_it_ended_early_it_is_published_without_another(
    pods: Callable[[str], Pods], forks: Forks
) -> None:
    stopping = {"earlyStopping": {"patience": 2, "minDelta": 1000}, "evalSteps": 1, "maxSteps": STEPS}
    asked = {**stopping, "checkpoints": {"everySteps": 1000}, "learningRate": 0.3, "scheduler": "constant"}
    whole, parted = (prepared(pods(name), {}, "none") for name in ("whole", "parted"))
    assert forks.run(whole, **asked) is Reason.COMPLETED, whole.log
    assert whole.metrics()["steps"] == 3
    assert stop_after(forks, parted, "step 3 is stored", asked) == 3
    assert forks.run(parted, **asked) is Reason.COMPLETED, parted.log
    assert list(parted.losses()) == [3]
    assert parted.metrics()["evalLoss"] == whole.metrics()["evalLoss"]
    same = [each.s3.get(f"{each.output}/adapter_model.safetensors") for each in (whole, parted)]
    assert same[0] == same[1]


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_stopped_after_the_last_step_it_is_published_without_another(
    s3: S3Server, pods: Callable[[str], Pods], forks: Forks, method: str
) -> None:
    training = {"method": method, "batchSize": 2, "gradientAccumulation": 1, "checkpoints": {"everySteps": 1000}}
    asked = {"maxSteps": STEPS - 1, **training}  # in the middle of an epoch
    whole, parted = (prepared(pods(name), training, "none") for name in ("whole", "parted"))
    assert forks.run(whole, **asked) is Reason.COMPLETED, whole.log
    assert stop_after(forks, parted, f"step {STEPS - 1}/{STEPS - 1}", asked) == STEPS - 1
    first = parted.log
    assert forks.run(parted, **asked) is Reason.COMPLETED, parted.log
    assert list(parted.losses()) == [STEPS - 1]
    for name in COMPARED:
        assert parted.metrics()[name] == pytest.approx(whole.metrics()[name], abs=1e-6), (name, first)
    same = [s3.get(f"{each.output}/adapter_model.safetensors") for each in (whole, parted)]
    assert same[0] == same[1]
    assert parted.metrics()["tokensPerSecond"] == pytest.approx(
        parted.metrics()["tokens"] / parted.metrics()["trainSeconds"], rel=0.01
    )
    assert not [key for key in s3.keys(parted.output) if "/." in key]
