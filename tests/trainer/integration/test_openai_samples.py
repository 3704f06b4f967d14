"""The samples of docs/how-to/migrate-from-openai.md train from end to end: all rows with tools too, and a DPO job."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.sample_manifests import SAMPLES_DIR, list_data_objects, load_manifest
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Reason, TrainerConfig

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

MODEL_URI = "s3://models/openai/"
TOOLS_URI = "s3://data/openai-tools.jsonl"
_DATA_BUCKET, _TEST_BUCKET = "s3://datasets/", "s3://data/"


@dataclass
class SampleRun(TrainerRun):
    """Pods of a sample's manifest, which is unchanged but for model, lengths, steps, store and `changes`."""

    sample: str = ""

    def config(self, **training: Any) -> TrainerConfig:
        manifest = json.loads(json.dumps(load_manifest(self.sample)).replace(_DATA_BUCKET, _TEST_BUCKET))
        spec = manifest["spec"]
        del spec["training"]["epochs"]
        # The tiny model has about a token for each letter.
        spec["model"] = {"uri": MODEL_URI, "maxLength": 2048, **self.changes.get("model", {})}
        spec["training"] |= training
        spec["storage"]["endpoint"] = self.s3.endpoint
        spec["output"]["uri"] = self.output
        spec["dataset"]["sources"] += self.changes.get("dataset", {}).get("sources", [])
        return TrainerConfig.from_manifest(manifest)


@pytest.fixture
def make_job(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], SampleRun]:
    """Upload the data of the samples and a tiny model for long rows, and return a function that creates a run."""
    make = make_run_factory(s3, tmp_path, forks.build_model)
    for key in s3.list_keys("s3://models/resume/"):
        content = s3.get(f"s3://models/{key}")
        if key.endswith("/config.json"):
            content = json.dumps(json.loads(content) | {"max_position_embeddings": 4096}).encode()
        s3.put(MODEL_URI + key.rpartition("/")[2], content)
    s3.put(TOOLS_URI, (SAMPLES_DIR / "data" / "openai-tools.jsonl").read_bytes())

    def make_job(sample: str) -> SampleRun:
        for uri, path in list_data_objects(sample):
            s3.put(uri.replace(_DATA_BUCKET, _TEST_BUCKET), path.read_bytes())
        plain = make(sample)
        return SampleRun(s3, plain.folder, plain.output, plain.environment, sample=sample)

    return make_job


def test_openai_supervised_job_trains_on_tool_calls(make_job: Callable[[str], SampleRun], forks: ForkServer) -> None:
    job = make_job("openai-supervised")
    job.changes = {"model": {"chatTemplateName": "qwen2_5"}, "dataset": {"sources": [{"uri": TOOLS_URI}]}}
    assert forks.run(job, maxSteps=2) is Reason.COMPLETED, job.log
    data = job.outcome.dataset
    assert data
    assert (data.kept, data.validation, data.rejected) == (24, 12, {})
    evaluation = json.loads(job.s3.get(f"{job.output}/evaluation.json"))
    assert evaluation["unusedColumns"] == {"parallel_tool_calls": 4}
    answers = [json.loads(line) for line in job.s3.get(f"{job.output}/evaluation.jsonl").splitlines()]
    assert len(answers) == 12


def test_openai_preference_job_trains(make_job: Callable[[str], SampleRun], forks: ForkServer) -> None:
    job = make_job("openai-preference")
    assert forks.run(job, maxSteps=2) is Reason.COMPLETED, job.log
    data = job.outcome.dataset
    assert data
    assert (data.kept, data.validation, data.rejected) == (16, 8, {})
    assert {"evalLoss", "evalRewardAccuracy"} <= job.read_metrics().keys()
