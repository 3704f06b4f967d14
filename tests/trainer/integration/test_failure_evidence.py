"""A run that fails leaves its log and its findings at the output, where they are until it completes."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load, save
from tests.support.trainer.trainer_process import TrainerRun, make_rows, make_run_factory

from finetune_trainer.contract import Reason

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

STALL_SECONDS = 60
"""Time for which the proxy holds a stalled request."""
pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

TOKEN = "hf_" + "a" * 34
BOMB = (2**60).to_bytes(8, "little") + b"{}"
"""A safetensors file whose header claims to be larger than any disk."""


@pytest.fixture
def make_job(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    return make_run_factory(s3, tmp_path, forks.build_model)


def upload_model_with_weights(s3: S3Server, name: str, weights: bytes) -> str:
    """Upload a copy of the tiny model with other weights, and return its URI."""
    for key in s3.list_keys("s3://models/resume/"):
        content = weights if key.endswith("/model.safetensors") else s3.get(f"s3://models/{key}")
        s3.put(f"s3://models/{name}/{key.rpartition('/')[2]}", content)
    return f"s3://models/{name}/"


def read_evidence(job: TrainerRun) -> tuple[dict[str, Any], str]:
    """Return the findings and the log that the outcome names. There is nothing else at the output."""
    log_uri = job.outcome.log_uri
    assert log_uri, job.log
    assert log_uri.startswith(f"{job.output}/.failed/")
    assert f"log: {log_uri}\n" in job.log
    findings_uri = log_uri.replace("run.log", "findings.json")
    assert {f"s3://results/{key}" for key in job.s3.list_keys(job.output)} == {log_uri, findings_uri}
    return json.loads(job.s3.get(findings_uri)), job.s3.get(log_uri).decode()


def test_failed_data_leaves_rejected_rows_until_run_completes(
    s3: S3Server, make_job: Callable[[str], TrainerRun], forks: ForkServer, proxy: FaultyProxy
) -> None:
    job, uri = make_job("data"), "s3://data/evidence.jsonl"
    job.changes = {"dataset": {"sources": [{"uri": uri}]}, "model": {"maxLength": 256}}
    rows = make_rows(6)
    repeated = json.dumps({"prompt": f"Use {TOKEN} or mail to a.b@example.com", "completion": "Yes."}).encode() + b"\n"
    s3.put(uri, rows + repeated * 2 + b'{"prompt": "no end\n')
    proxy.stalled_key = "model.safetensors"
    job.environment |= {name: os.environ[name] for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY")}
    started = time.monotonic()
    assert forks.run(job, maxSteps=1) is Reason.DATA_INVALID, job.log
    assert time.monotonic() - started < STALL_SECONDS, "the run has waited for the weights"
    proxy.stalled_key = "\0"
    findings, log = read_evidence(job)
    assert " of weights" not in log.partition("stage: Preparing")[2]
    assert findings["message"] == job.outcome.message
    assert (findings["reason"], findings["stage"]) == ("DataInvalid", "Preparing")
    assert findings["rejected"] == {"duplicate": 1, "invalid": 1}
    examples = {example["reason"]: example for example in findings["examples"]}
    assert f"{uri} line 9: " in examples["invalid"]["where"]
    assert "Use [SECRET] or mail to [EMAIL]" in examples["duplicate"]["text"]
    assert "transformers" in findings["versions"]
    assert "stage: Preparing" in log
    assert log.rstrip().endswith(job.outcome.message)
    assert TOKEN not in json.dumps(findings) + log
    s3.put(uri, rows)
    assert forks.run(job, maxSteps=1) is Reason.COMPLETED, job.log
    assert job.outcome.log_uri == f"{job.output}/run.log"
    assert not [key for key in s3.list_keys(job.output) if "/.failed/" in key]
    assert forks.run(job, maxSteps=1) is Reason.ALREADY_COMPLETE, job.log
    assert job.outcome.log_uri == f"{job.output}/run.log"


def test_failed_loading_leaves_dataset_report(
    s3: S3Server, make_job: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    job = make_job("loading")
    job.changes = {"model": {"uri": upload_model_with_weights(s3, "bomb", BOMB)}}
    assert forks.run(job, maxSteps=1) is Reason.MODEL_INVALID, job.log
    findings, log = read_evidence(job)
    assert (findings["stage"], findings["dataset"]["rows"], findings["preflight"]) == ("Loading", 16, [])
    assert "stage: Loading" in log


def test_failed_training_leaves_preflight_of_last_attempt(
    s3: S3Server, make_job: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    job = make_job("training")
    weights = load(s3.get("s3://models/resume/model.safetensors"))
    weights["model.norm.weight"][0] = math.nan
    job.changes = {"model": {"uri": upload_model_with_weights(s3, "nan", save(weights, {"format": "pt"}))}}
    for _ in range(2):
        assert forks.run(job, maxSteps=6) is Reason.NON_FINITE_LOSS, job.log
    findings, log = read_evidence(job)
    assert findings["stage"] == "Training"
    assert {"positions", "vocabulary"} <= {finding["check"] for finding in findings["preflight"]}
    assert log.count("stage: Preparing") == 1, "the log is that of the last attempt"
    assert "NonFiniteLoss: " in log
