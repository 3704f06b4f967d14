"""Results of the quickstart with several adapters, trained and published to an S3 server on this machine."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.support.trainer import sample_manifests
from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server, serve

from finetune_trainer.records.evaluation import EvaluationReport
from finetune_trainer.records.manifest import AdapterManifest
from local_cluster import smollm2

BASE_MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PREFIX = "s3://adapters/quickstart"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
MAX_TOKENS = 32
VARIANTS: dict[str, dict[str, Any]] = {
    "first": {"maxSteps": 8},
    "second": {"maxSteps": 5, "seed": 7},
    "rslora": {"maxSteps": 4, "lora": {"rank": 16, "alpha": 8, "variant": "rslora"}},
    "rank-64": {"maxSteps": 3, "lora": {"rank": 64, "alpha": 64}},
    "dora": {"maxSteps": 1, "lora": {"rank": 16, "variant": "dora"}},
}
"""Changes of `training` of the quickstart by the name of the run."""


@dataclass(frozen=True)
class Adapter:
    """A published adapter, downloaded as a user would."""

    run: str
    folder: Path
    manifest: AdapterManifest
    answers: dict[str, str]
    """The trainer's own greedy answers by prompt."""


@contextmanager
def serve_inputs(folder: Path) -> Iterator[S3Server]:
    """Run an S3 server with the base model and the data of the quickstart."""
    for server in serve(folder):
        for bucket in ("datasets", "adapters"):
            server.client.create_bucket(Bucket=bucket)
        for uri, file in sample_manifests.list_data_objects("quickstart"):
            server.put(uri, file.read_bytes())
        for file in sorted(smollm2.ensure_model().iterdir()):
            server.put(f"{sample_manifests.MODEL_URI}{file.name}", file.read_bytes())
        yield server


def train_adapter(server: S3Server, run: str, folder: Path) -> Adapter:
    """Train a variant with `finetune-trainer run`, and download what it published."""
    job = folder / f"{run}.yaml"
    job.write_text(yaml.safe_dump(_build_job(server, run)))
    line: list[str | Path] = [
        sys.executable,
        "-m",
        "finetune_trainer",
        "run",
        job,
        "--work-dir",
        folder / f"work-{run}",
    ]
    environment = {**os.environ, **CREDENTIALS, "CUDA_VISIBLE_DEVICES": ""}
    with (folder / f"{run}.log").open("wb") as log:
        subprocess.run(line, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    target = folder / "adapters" / run
    target.mkdir(parents=True)
    for key in server.list_keys(f"{PREFIX}/{run}/"):
        (target / Path(key).name).write_bytes(server.get(f"s3://adapters/{key}"))
    manifest = AdapterManifest.model_validate_json((target / "manifest.json").read_bytes())
    report = EvaluationReport.model_validate(json.loads((target / "evaluation.json").read_bytes()))
    answers = {sample.turns[-1].text: sample.tuned.text for sample in report.samples if sample.kind == "prompt"}
    return Adapter(run, target, manifest, answers)


def _build_job(server: S3Server, run: str) -> dict[str, Any]:
    job = copy.deepcopy(sample_manifests.load_manifest("quickstart"))
    spec, changes = job["spec"], VARIANTS[run]
    job["metadata"]["name"] = run
    spec["output"] = {"uri": f"{PREFIX}/{{name}}", "baseModelName": BASE_MODEL_NAME}
    spec["storage"]["endpoint"] = server.endpoint
    spec["evaluation"]["maxNewTokens"] = MAX_TOKENS
    del spec["training"]["epochs"]
    spec["training"] |= {"precision": "fp32", **changes}
    return dict(job)
