"""A model that fails the gate is not published, and unmeasurable rules are refused before training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import CHATML
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Reason

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

REFUSED = {
    # evaluation, reason, expected message
    "a metric of another task": (
        {"task": "translation", "gate": [{"metric": "accuracy", "minimum": 0.9}]},
        Reason.CONFIG_INVALID,
        "evaluation.gate names accuracy, but this run measures only evalLoss, perplexity, bleu, chrf",
    ),
    "a metric without a task": (
        {"gate": [{"metric": "bleu", "minimum": 1}]},
        Reason.CONFIG_INVALID,
        "evaluation.gate names bleu",
    ),
    "a term with two counterparts": (
        {"bias": {"terms": [["nurse", "doctor"], ["Nurse", "driver"]]}},
        Reason.CONFIG_INVALID,
        'evaluation.bias.terms[1]: "nurse" occurs twice',
    ),
    "a sentence without its counterpart": (
        {"bias": {"pairsURI": "s3://data/wrong.csv"}},
        Reason.DATA_INVALID,
        "s3://data/wrong.csv line 2: ",
    ),
    "a prompt that the chat template refuses": (
        {"samplePrompts": ["refuse me"]},
        Reason.CONFIG_INVALID,
        "evaluation.samplePrompts: the chat template rejects 'refuse me'",
    ),
    "no such pairs": ({"bias": {"pairsURI": "s3://data/none.csv"}}, Reason.DATA_NOT_FOUND, "s3://data/none.csv"),
    "accuracy without labels": ({"task": "classification"}, Reason.CONFIG_INVALID, "accuracy without labels"),
}


REFUSING = "{% if messages[0].content == 'refuse me' %}{{ raise_exception('no') }}{% endif %}" + CHATML
PAIRS = "sent_more,sent_less,stereo_antistereo,bias_type\n"


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., TrainerRun]:
    make = make_run_factory(s3, tmp_path, forks.build_model)
    sentences = "".join(f"She cooks {n} meals.,He cooks {n} meals.,stereo,kitchen\n" for n in range(24))
    s3.put("s3://data/pairs.csv", (PAIRS + sentences).encode())
    s3.put("s3://data/wrong.csv", (PAIRS + "one,,stereo,kitchen\n").encode())

    def make_job(name: str, evaluation: dict[str, Any]) -> TrainerRun:
        pods = make(name)
        pods.changes = {
            "dataset": {"sources": [{"uri": "s3://data/resume.jsonl"}], "validation": {"fraction": 0.4}},
            "evaluation": {"maxNewTokens": 4, **evaluation},
            "model": {"chatTemplate": REFUSING},
        }
        return pods

    return make_job


def read_rows(s3: S3Server, uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in s3.get(uri).decode().splitlines()]


def test_gate_failed_model_is_not_published(s3: S3Server, pods: Callable[..., TrainerRun], forks: ForkServer) -> None:
    gate = [{"metric": "evalLoss", "maximum": 0.001}, {"metric": "perplexity", "minImprovement": 0}]
    job = pods("worse", {"gate": gate, "task": "chat"})
    assert forks.run(job, maxSteps=6, checkpoints={"everySteps": 2}) is Reason.EVALUATION_GATE, job.log
    assert re.search(r"evalLoss is \d\S*, at most 0.001 is required", job.outcome.message)
    assert "perplexity" not in job.outcome.message, "that one it passes"
    assert [key for key in s3.list_keys(job.output) if "/.rejected/" not in key] == []
    uri = job.outcome.message.rpartition("; the report is ")[2]
    assert uri.startswith(f"{job.output}/.rejected/")
    assert "Do not deploy this adapter: it fails 1 rule of the gate" in s3.get(uri).decode()
    assert job.outcome.log_uri == uri.replace("report.html", "run.log")
    assert f"EvaluationGate: {job.outcome.message}" in s3.get(job.outcome.log_uri).decode()
    evaluation = json.loads(s3.get(uri.replace("report.html", "evaluation.json")))
    assert [check["passed"] for check in evaluation["gate"]] == [False, True]
    assert len(read_rows(s3, uri.replace("report.html", "evaluation.jsonl"))) == 6


def test_gate_passed_model_is_published_with_evaluation(
    s3: S3Server, pods: Callable[..., TrainerRun], forks: ForkServer
) -> None:
    gate = [{"metric": "chrf", "minImprovement": 0}]
    bias = {"pairsURI": "s3://data/pairs.csv"}
    job = pods("better", {"task": "chat", "samplePrompts": ["Who?"], "bias": bias, "gate": gate})
    assert forks.run(job, maxSteps=6) is Reason.COMPLETED, job.log
    evaluation = json.loads(s3.get(f"{job.output}/evaluation.json"))
    assert evaluation["samples"][0]["turns"] == [{"role": "user", "text": "Who?"}]
    rows = read_rows(s3, f"{job.output}/evaluation.jsonl")
    assert [row["reference"] for row in rows] == [sample["reference"] for sample in evaluation["samples"][1:]]
    assert {frozenset(row["scores"]["tuned"]) for row in rows} == {
        frozenset({"exactMatch", "chrf", "lossSum", "lossTokens"})
    }
    assert [check["passed"] for check in evaluation["gate"]] == [True]
    assert [(finding["kind"], finding["category"]) for finding in evaluation["bias"]["findings"]] == [
        ("pair", "kitchen")
    ]
    assert "s3://data/pairs.csv" in s3.get(f"{job.output}/manifest.json").decode()
    assert {"chrf", "baseChrf", "exactMatch", "perplexity"} <= job.read_metrics().keys()
    listed = {file["path"]: file["sha256"] for file in json.loads(s3.get(f"{job.output}/manifest.json"))["files"]}
    assert {"README.md", "report.html", "evaluation.json", "evaluation.jsonl", "run.log"} <= listed.keys()
    assert job.outcome.message == f"published at {job.output}", "only exactMatch is undecided: 0 for both models"
    assert job.outcome.result
    assert job.outcome.result.report_uri == f"{job.output}/report.html"
    assert "library_name: peft" in s3.get(f"{job.output}/README.md").decode()
    subjects = {
        subject["name"]: subject["digest"]["sha256"]
        for subject in json.loads(s3.get(f"{job.output}/provenance.json"))["subject"]
    }
    assert subjects == {
        name: listed[name] for name in listed if name not in ("provenance.json", "finetune_config.json")
    }


@pytest.mark.parametrize(("evaluation", "reason", "expected_message"), REFUSED.values(), ids=REFUSED)
def test_gate_unmeasurable_is_refused_before_training(
    pods: Callable[..., TrainerRun],
    forks: ForkServer,
    evaluation: dict[str, Any],
    reason: Reason,
    expected_message: str,
) -> None:
    job = pods("refused", evaluation)
    assert forks.run(job) is reason, job.log
    assert expected_message in job.outcome.message
    assert "stage: Training" not in job.log
