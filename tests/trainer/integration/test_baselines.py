"""A run compares its adapter with that of an earlier run, on the same rows, and refuses adapters of other models."""

from __future__ import annotations

import json
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


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[..., TrainerRun]:
    """Return a function that creates a run by its name, with the URIs of its baselines by name."""
    make = make_run_factory(s3, tmp_path, forks.build_model)

    def make_job(name: str, **baselines: str) -> TrainerRun:
        job = make(name)
        listed = [{"name": baseline, "adapterURI": uri} for baseline, uri in baselines.items()]
        job.changes = {
            "dataset": {"sources": [{"uri": "s3://data/resume.jsonl"}], "validation": {"fraction": 0.4}},
            "evaluation": {"maxNewTokens": 4, "task": "generation", "samplePrompts": ["Who?"], "baselines": listed},
        }
        return job

    return make_job


def read_rows(job: TrainerRun) -> dict[str, Any]:
    lines = job.s3.get(f"{job.output}/evaluation.jsonl").decode().splitlines()
    return {row["row"]: row for row in map(json.loads, lines)}


def test_baseline_of_earlier_run_has_the_results_of_that_run(
    pods: Callable[..., TrainerRun], forks: ForkServer
) -> None:
    may = pods("may")
    assert forks.run(may, maxSteps=2) is Reason.COMPLETED, may.log
    june = pods("june", may=may.output)
    assert forks.run(june, maxSteps=4, lora={"rank": 2}) is Reason.COMPLETED, june.log
    first, second = (json.loads(job.s3.get(f"{job.output}/evaluation.json")) for job in (may, june))
    compared = {measure["name"]: measure["baselines"]["may"]["estimate"]["value"] for measure in second["measures"]}
    measured = {measure["name"]: measure["tuned"]["value"] for measure in first["measures"]}
    assert compared == pytest.approx(measured, rel=1e-4)
    assert second["samples"][0]["baselines"]["may"] == first["samples"][0]["tuned"]
    earlier, later = read_rows(may), read_rows(june)
    assert earlier.keys() == later.keys()
    assert all(row["answers"]["tuned"] == later[digest]["answers"]["may"] for digest, row in earlier.items())
    assert "Comparison with the baseline" in june.s3.get(f"{june.output}/report.html").decode()
    inputs = [entry["uri"] for entry in json.loads(june.s3.get(f"{june.output}/manifest.json"))["inputs"]]
    assert f"{may.output}/adapter_model.safetensors" in inputs


def test_baseline_of_other_model_is_refused_before_training(
    pods: Callable[..., TrainerRun], forks: ForkServer, s3: S3Server
) -> None:
    may = pods("small")
    assert forks.run(may, maxSteps=1) is Reason.COMPLETED, may.log
    settings = json.loads(s3.get(f"{may.output}/adapter_config.json")) | {"r": 8}
    s3.put("s3://data/other/adapter_config.json", json.dumps(settings).encode())
    s3.put("s3://data/other/adapter_model.safetensors", s3.get(f"{may.output}/adapter_model.safetensors"))
    refused = pods("refused", other="s3://data/other")
    assert forks.run(refused) is Reason.MODEL_INVALID, refused.log
    assert "evaluation.baselines other: the adapter cannot be compared with this model" in refused.outcome.message
    missing = pods("missing", gone="s3://data/none")
    assert forks.run(missing) is Reason.MODEL_NOT_FOUND, missing.log
    assert missing.outcome.message.startswith("evaluation.baselines[0].adapterURI: s3://data/none/ at ")
    assert not [job for job in (refused, missing) if "stage: Training" in job.log]
