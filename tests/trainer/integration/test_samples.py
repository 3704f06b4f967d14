"""Each sample of an application runs from end to end, as it is but for model, lengths, steps and store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer import sample_manifests
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.evaluation import requirements

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

ROWS = {
    # trained on, validation
    "chatbot": (80, 22),
    "classification": (90, 27),
    "summarization": (72, 26),
    "translation": (106, 28),
    "generation": (84, 24),
    "extraction": (120, 30),
    "arithmetic": (128, 32),
    "labels": (90, 27),
}


@dataclass
class SampleRun(TrainerRun):
    """Pods of a sample's manifest."""

    sample: str = ""

    def config(self, **training: Any) -> TrainerConfig:
        manifest = sample_manifests.load_manifest(self.sample)
        spec = manifest["spec"]
        # The tiny model has about a token for each letter.
        spec["model"] |= {"uri": "s3://models/resume/", "maxLength": 512}
        del spec["training"]["epochs"]
        spec["training"] |= training
        spec["storage"]["endpoint"] = self.s3.endpoint
        spec["evaluation"]["maxNewTokens"] = 4
        for grader in spec["evaluation"].get("graders", ()):
            if grader.get("stringCheck", {}).get("operation") == "matches":
                grader["stringCheck"]["reference"] = "e"  # some answers of random weights match
        for rule in spec["evaluation"]["gate"]:
            rule.pop("minimum", None)
            rule["minImprovement"] = -1000  # a tiny model of random weights learns nothing in so few steps
        return TrainerConfig.from_manifest(manifest)


@pytest.fixture(scope="module")
def stored(s3_server: S3Server) -> S3Server:
    sample_manifests.upload_data(s3_server)
    return s3_server


@pytest.fixture
def pods(stored: S3Server, s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], SampleRun]:
    make = make_run_factory(s3, tmp_path, forks.build_model)

    def of(sample: str) -> SampleRun:
        plain = make(sample)
        return SampleRun(stored, plain.folder, f"s3://adapters/{sample}", plain.environment, sample=sample)

    return of


@pytest.mark.parametrize("sample", sample_manifests.SAMPLE_NAMES)
def test_sample_runs_and_measures_its_task(pods: Callable[[str], SampleRun], forks: ForkServer, sample: str) -> None:
    job = pods(sample)
    assert forks.run(job, maxSteps=2) is Reason.COMPLETED, job.log
    evaluation = json.loads(job.s3.get(f"{job.output}/evaluation.json"))
    config = job.config(maxSteps=2)
    assert {measure["name"] for measure in evaluation["measures"]} >= set(requirements.list_metrics(config))
    missing = [entry for entry in evaluation.get("missing", []) if not entry.startswith("complete answers: ")]
    assert missing == []  # the test shortens answers
    prompts = config.evaluation.sample_prompts
    assert [answer["turns"][0]["text"] for answer in evaluation["samples"][: len(prompts)]] == prompts
    assert [check["passed"] for check in evaluation["gate"]] == [True]
    data = job.outcome.dataset
    assert data
    assert (data.kept, data.validation) == ROWS[sample]
    assert (data.rejected, data.sensitive, data.cleaned) == ({}, {}, 0)


@pytest.mark.parametrize("sample", sample_manifests.SAMPLE_NAMES)
def test_sample_prompts_are_not_in_its_data(sample: str) -> None:
    data = "".join(file.read_text() for _, file in sample_manifests.list_data_objects(sample))
    prompts = sample_manifests.load_manifest(sample)["spec"]["evaluation"]["samplePrompts"]
    assert prompts
    assert not [prompt for prompt in prompts if json.dumps(prompt, ensure_ascii=False).strip('"') in data]
