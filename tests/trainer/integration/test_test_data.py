"""A run measures its adapter on `evaluation.test` once, after the training, and publishes the results."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.trainer_process import TrainerRun, make_rows, make_run_factory

from finetune_trainer.contract import SUSPEND_AT_STEP_ENV, Reason

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

NEW_ROWS = b"".join(
    json.dumps({"prompt": f"Where is {n}?", "completion": f"There is {n}."}).encode() + b"\n" for n in range(6)
)
VALIDATION_ROWS = NEW_ROWS.replace(b"Where", b"When")


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    """Return a function that creates a run, whose test rows are six new ones, two of the training rows and one of the
    validation rows."""
    make = make_run_factory(s3, tmp_path, forks.build_model)
    validation_row = VALIDATION_ROWS.splitlines(keepends=True)[0]
    s3.put("s3://data/test.jsonl", NEW_ROWS + make_rows(2) + validation_row)
    s3.put("s3://data/validation.jsonl", VALIDATION_ROWS)

    def make_job(name: str) -> TrainerRun:
        job = make(name)
        validation = {"sources": [{"uri": "s3://data/validation.jsonl"}]}
        job.changes = {
            "dataset": {"sources": [{"uri": "s3://data/resume.jsonl"}], "validation": validation},
            "evaluation": {
                "maxNewTokens": 4,
                "task": "generation",
                "test": {"sources": [{"uri": "s3://data/test.jsonl"}]},
                "gate": [{"metric": "testLoss", "maximum": 100}],
            },
        }
        return job

    return make_job


def test_test_data_is_measured_once_and_published(
    pods: Callable[[str], TrainerRun], forks: ForkServer, s3: S3Server
) -> None:
    job = pods("tested")
    job.environment[SUSPEND_AT_STEP_ENV] = "2"
    assert forks.run(job, maxSteps=4) is Reason.STEP_REACHED, job.log
    assert "test loss" not in job.log
    del job.environment[SUSPEND_AT_STEP_ENV]
    assert forks.run(job, maxSteps=4) is Reason.COMPLETED, job.log
    assert job.log.count("evaluation: test loss") == 1
    result, report = job.outcome.result, job.outcome.dataset
    assert result
    assert report
    assert (report.rows, report.kept, report.validation, report.test) == (31, 14, 5, 9)
    assert report.rejected == {"leaked": 3}
    assert {"testLoss", "baseTestLoss", "testChrf", "baseTestChrf", "testExactMatch"} <= result.metrics.keys()
    manifest = json.loads(s3.get(f"{job.output}/manifest.json"))
    assert [entry["uri"] for entry in manifest["inputs"]] == [
        f"s3://data/{name}.jsonl" for name in ("resume", "validation", "test")
    ]
    evaluation = json.loads(s3.get(f"{job.output}/evaluation.json"))
    measures = {measure["name"]: measure["tuned"] for measure in evaluation["testMeasures"]}
    assert measures["testLoss"]["value"] == result.metrics["testLoss"] == manifest["metrics"]["testLoss"]
    assert {name: estimate["samples"] for name, estimate in measures.items()} == dict.fromkeys(measures, 9)
    assert [check["passed"] for check in evaluation["gate"]] == [True]
    page, card = (s3.get(f"{job.output}/{name}").decode() for name in ("report.html", "README.md"))
    assert "Test data</h2>" in page
    assert "### Test data" in card
    s3.put("s3://data/test.jsonl", NEW_ROWS)
    assert forks.run(job, maxSteps=4) is Reason.INPUTS_CHANGED, job.log


def test_run_killed_while_it_measures_the_test_data_repeats_only_the_evaluation(
    pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    job, training = pods("killed"), {"maxSteps": 4, "checkpoints": {"everySteps": 4}}
    assert forks.run_until(job, "evaluation: test loss", signal.SIGKILL, **training) == -signal.SIGKILL
    assert forks.run(job, **training) is Reason.COMPLETED, job.log
    assert "resuming from step 4" in job.log
    assert {"testLoss", "testChrf"} <= job.read_metrics().keys()


def test_test_data_in_a_file_equal_to_the_training_data_leaves_nothing_to_train_on(
    pods: Callable[[str], TrainerRun], forks: ForkServer, tmp_path: Path
) -> None:
    job = pods("same")
    (tmp_path / "test.jsonl").write_bytes(make_rows(16))
    job.changes["evaluation"] = {"test": {"sources": [{"uri": f"file://{tmp_path}/test.jsonl"}]}}
    assert forks.run(job) is Reason.DATASET_EMPTY, job.log
    assert "16 leaked, 6 held out for validation, 16 held out for the test" in job.outcome.message
