"""A run scores the generated answers by its graders, gates on them, and says which answers have no score."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.judge_server import JudgeServer, Reply, build_judge_reply, serve_replies
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Reason

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

GRADERS: list[dict[str, Any]] = [
    {"name": "label", "stringCheck": {"reference": "{{item.kind}}"}},
    {"name": "short", "length": {"maximum": 400, "unit": "characters"}},
    {"name": "both", "weighted": {"terms": [{"grader": "label"}, {"grader": "short", "weight": 3}]}},
]
ROWS = [{"prompt": f"Is {n} even?", "completion": "yes" if n % 2 == 0 else "no", "kind": "yes"} for n in range(40)]


def write_rows(s3: S3Server, name: str, rows: list[dict[str, Any]]) -> str:
    uri = f"s3://data/{name}.jsonl"
    s3.put(uri, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return uri


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., TrainerRun]:
    make = make_run_factory(s3, tmp_path, forks.build_model)

    def make_job(name: str, rows: list[dict[str, Any]], **evaluation: Any) -> TrainerRun:
        job = make(name)
        job.changes = {
            "dataset": {"sources": [{"uri": write_rows(s3, name, rows)}], "validation": {"fraction": 0.3}},
            "evaluation": {"maxNewTokens": 4, "graders": GRADERS, **evaluation},
        }
        return job

    return make_job


def test_run_with_graders_publishes_their_means_and_scores(
    pods: Callable[..., TrainerRun], s3: S3Server, forks: ForkServer
) -> None:
    test_uri = write_rows(s3, "graded-test", [{**row, "prompt": row["prompt"] + "!"} for row in ROWS[:6]])
    job = pods("graded", ROWS, test={"sources": [{"uri": test_uri}]}, gate=[{"metric": "short", "minimum": 1}])
    assert forks.run(job, maxSteps=30) is Reason.COMPLETED, job.log

    metrics = job.read_metrics()
    assert {"label", "baseLabel", "both", "baseBoth", "testLabel", "baseTestLabel"} < {*metrics}
    assert (metrics["short"], metrics["baseShort"]) == (1, 1)
    assert metrics["both"] == pytest.approx((metrics["label"] + 3) / 4)
    rows = [json.loads(line) for line in s3.get(f"{job.output}/evaluation.jsonl").decode().splitlines()]
    scores = [(row["answers"]["tuned"]["text"], row["scores"]["tuned"]["label"]) for row in rows]
    assert [score for _, score in scores] == [float(text.strip() == "yes") for text, _ in scores]
    assert sum(score for _, score in scores) / len(scores) == pytest.approx(metrics["label"])
    evaluation = json.loads(s3.get(f"{job.output}/evaluation.json"))
    measure = next(measure for measure in evaluation["measures"] if measure["name"] == "label")
    assert measure["change"]["value"] == pytest.approx(metrics["label"] - metrics["baseLabel"])


def test_run_with_few_missing_columns_leaves_these_rows_out_of_the_mean(
    pods: Callable[..., TrainerRun], s3: S3Server, forks: ForkServer
) -> None:
    rows = [{key: value for key, value in row.items() if key != "kind" or n % 2} for n, row in enumerate(ROWS)]
    job = pods("ungraded", rows, maxUngradedFraction=1)
    assert forks.run(job, maxSteps=2) is Reason.COMPLETED, job.log

    evaluation = json.loads(s3.get(f"{job.output}/evaluation.json"))
    samples = {measure["name"]: measure["tuned"]["samples"] for measure in evaluation["measures"]}
    assert 0 < samples["label"] < samples["short"]
    assert samples["both"] == samples["label"]
    ungraded = samples["short"] - samples["label"]
    expected = f"label: {ungraded} of {samples['short']} answers (the row has no field item.kind) of tuned"
    assert any(message.startswith(expected) for message in evaluation["missing"]), evaluation["missing"]


def test_run_with_a_missing_column_ends_before_the_training(pods: Callable[..., TrainerRun], forks: ForkServer) -> None:
    rows = [{key: value for key, value in row.items() if key != "kind"} for row in ROWS]
    job = pods("no-column", rows)
    assert forks.run(job) is Reason.DATA_INVALID
    outcome = job.outcome
    assert "evaluation.graders: label gives no score to 12 of 12 answers of the validation data" in outcome.message
    assert "item.kind" in outcome.message
    assert outcome.progress is None or not outcome.progress.step


def test_run_with_an_invalid_pattern_ends_before_the_training(
    pods: Callable[..., TrainerRun], forks: ForkServer
) -> None:
    pattern = {"name": "back", "stringCheck": {"operation": "matches", "reference": r"(a)\1"}}
    job = pods("no-pattern", ROWS, graders=[pattern])
    assert forks.run(job) is Reason.CONFIG_INVALID
    assert "back" in job.outcome.message


def test_grade_command_prints_means_and_scores(tmp_path: Path, pods: Callable[..., TrainerRun]) -> None:
    manifest, answers = tmp_path / "job.yaml", tmp_path / "answers.jsonl"
    spec = pods("by-hand", ROWS).config().to_json()
    manifest.write_text(
        json.dumps(
            {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}, "spec": spec}
        )
    )
    lines = [{"answer": "yes", "item": {"kind": "yes"}}, {"answer": "no", "item": {"kind": "yes"}}, {"answer": "no"}]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def grade(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "finetune_trainer", "grade", manifest, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    text = grade(answers)
    assert text.returncode == 0, text.stderr
    assert text.stdout.splitlines()[0].startswith("label  mean 0.5 of 3 answers, 1 without a score: ")
    rows = [json.loads(line) for line in grade(answers, "--json").stdout.splitlines()]
    assert [row["scores"]["label"] for row in rows] == [1, 0, None]
    answers.write_text('{"answer": "yes"}\n{"answer": 3}\n')
    wrong = grade(answers)
    assert wrong.returncode == 42
    assert wrong.stderr.startswith(f"DataInvalid: {answers} line 2: answer: ")


def test_run_whose_judge_fails_keeps_its_checkpoint_for_the_next_attempt(
    pods: Callable[..., TrainerRun], s3: S3Server, forks: ForkServer
) -> None:
    judge = {"name": "quality", "judge": {"endpoint": "judges", "model": "m", "instructions": "Is it right?"}}
    job = pods("judged", ROWS, graders=[judge])

    def use_endpoint(server: JudgeServer) -> None:
        job.changes["evaluation"]["endpoints"] = [{"name": "judges", "uri": server.uri}]

    with serve_replies(lambda _: Reply(503)) as server:
        use_endpoint(server)
        assert forks.run(job, maxSteps=12) is Reason.GRADER_FAILED, job.log
    assert "endpoint judges failed 10 times in a row" in job.outcome.message or "status 503" in job.outcome.message
    assert f"{job.output}/manifest.json".removeprefix("s3://results/") not in s3.list_keys("s3://results/")

    with serve_replies(lambda _: build_judge_reply('{"score": 5}')) as server:
        use_endpoint(server)
        assert forks.run(job, maxSteps=12) is Reason.COMPLETED, job.log
    assert "step 1/12" not in job.log  # the training was resumed
    assert job.read_metrics()["quality"] == 0.5
    evaluation = json.loads(s3.get(f"{job.output}/evaluation.json"))
    endpoint = evaluation["endpoints"][0]
    assert (endpoint["name"], endpoint["host"], endpoint["failures"]) == ("judges", "127.0.0.1", 0)
    rows = [json.loads(line) for line in s3.get(f"{job.output}/evaluation.jsonl").decode().splitlines()]
    assert all(row["sentTo"] == ["judges"] for row in rows)
