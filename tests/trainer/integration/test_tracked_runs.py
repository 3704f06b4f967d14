"""Tests of complete runs with a tracker: it receives all points, and its faults do not affect the run."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.faulty_proxy import Fault
from tests.support.trainer.tracking_servers import MlflowServer, serve_without_answering
from tests.support.trainer.trainer_process import STEPS, TrainerRun, make_run_factory
from tests.trainer.publishing.test_signing import SIGNING_FIELDS, download_result, public_key, verify_signature

from finetune_trainer.contract import JOB_ENV, Reason

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

__all__ = ["public_key"]
pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., TrainerRun]:
    """Runs that are tracked in this way, with validation data."""
    make = make_run_factory(s3, tmp_path, forks.build_model)

    def tracked(name: str, **tracking: Any) -> TrainerRun:
        job = make(name)
        job.environment[JOB_ENV] = f"team/{name}"
        job.changes = {
            "dataset": {"validation": {"sources": [{"uri": "s3://data/resume.jsonl", "limit": 4}]}},
            "tracking": tracking,
        }
        return job

    return tracked


def test_tracked_run_next_attempt_resumes_mlflow_run(
    pods: Callable[..., TrainerRun], forks: ForkServer, mlflow: MlflowServer, proxy: FaultyProxy
) -> None:
    bot = pods("bot", tool="mlflow", uri=mlflow.uri, experiment="bots")
    proxy.faults = [Fault("stall", "PUT", "README.md", times=9)]  # the first attempt never gets to its end
    child = forks.start(bot, evalSteps=10)
    deadline = time.monotonic() + 120
    while "stage: Uploading" not in bot.log or "tracking: http" not in bot.log:
        assert time.monotonic() < deadline, bot.log
        time.sleep(0.05)
    while len(mlflow.get_history(mlflow.get_run("bots"), "loss")) < STEPS:
        assert time.monotonic() < deadline, bot.log
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    assert forks.wait(child) == -signal.SIGKILL
    assert mlflow.get_run("bots").info.status == "RUNNING"
    proxy.faults = [Fault("delay", "PUT", "/bot/", times=4)]  # it takes a busy machine seconds to import MLflow
    assert forks.run(bot, evalSteps=10) is Reason.COMPLETED, bot.log

    run = mlflow.get_run("bots")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "team/bot"), bot.log
    assert [step for step, _ in mlflow.get_history(run, "loss")] == list(range(1, STEPS + 1))
    assert {step for step, _ in mlflow.get_history(run, "evalLoss")} == {0, 10, 20}
    assert len(mlflow.get_history(run, "learningRate")) == STEPS
    assert len(mlflow.get_history(run, "tokensPerSecond")) == STEPS + 1  # and at the end that of the complete run
    assert bot.outcome.result
    assert run.data.metrics.items() >= bot.read_metrics().items()
    assert {"baseEvalLoss", "evalLoss", "perplexity", "basePerplexity"} <= run.data.metrics.keys()
    assert run.data.params["training.lora.rank"] == "4"
    tags = run.data.tags
    assert (tags["finetune.name"], tags["finetune.resultURI"]) == ("bot", bot.output)
    assert tags["finetune.resultDigest"] == bot.outcome.result.digest
    assert "tracking" not in bot.outcome.message


def test_tracked_run_hanging_server_still_completes(pods: Callable[..., TrainerRun], forks: ForkServer) -> None:
    with serve_without_answering() as uri:
        bot = pods("bot", tool="mlflow", uri=uri)
        assert forks.run(bot) is Reason.COMPLETED, bot.log
    loss_message = re.escape(f" points were lost: mlflow at {uri}: it did not respond in time")
    assert re.search(rf"; tracking: (\d+) of \1{loss_message}", bot.outcome.message), bot.outcome.message


def test_tracked_run_event_files_are_signed(
    s3: S3Server, pods: Callable[..., TrainerRun], forks: ForkServer, tmp_path: Path, public_key: Path
) -> None:
    bot = pods("bot", tool="tensorboard")
    bot.environment |= {name: value for name, value in os.environ.items() if name.startswith("FINETUNE_SIGNING")}
    bot.changes["output"] = {"signing": SIGNING_FIELDS}
    assert forks.run(bot) is Reason.COMPLETED, bot.log
    folder = download_result(s3, bot.output, tmp_path / "downloaded")
    events = folder / "tensorboard" / "events.out.tfevents.finetune"
    assert events.is_file()
    assert verify_signature(folder, public_key).returncode == 0
    events.write_bytes(events.read_bytes()[:-1])
    assert "tensorboard/events.out.tfevents.finetune" in verify_signature(folder, public_key).stderr
