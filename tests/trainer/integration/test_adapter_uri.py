"""Tests of a run that starts from a published adapter and has separate validation data."""

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

SHAPE: dict[str, Any] = {"maxSteps": 6, "batchSize": 4, "gradientAccumulation": 1, "lora": {"rank": 4}}


def to_json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    s3.put(
        "s3://data/more.jsonl",
        to_json_lines([{"prompt": f"Is it {n}?", "completion": f"Yes, {n}."} for n in range(12)]),
    )
    s3.put(
        "s3://data/held-out.jsonl",
        to_json_lines([{"prompt": f"Why {n}?", "completion": f"It is {n}."} for n in range(5)]),
    )
    return make_run_factory(s3, tmp_path, forks.build_model)


def set_inputs(pods: TrainerRun, data: str = "resume", **model: str) -> TrainerRun:
    validation = {"sources": [{"uri": "s3://data/held-out.jsonl"}]}
    pods.changes = {
        "dataset": {"sources": [{"uri": f"s3://data/{data}.jsonl"}], "validation": validation},
        "model": dict(model),
    }
    return pods


@pytest.fixture
def first(pods: Callable[[str], TrainerRun], forks: ForkServer) -> TrainerRun:
    """Has published an adapter."""
    job = set_inputs(pods("first"))
    assert forks.run(job, **SHAPE) is Reason.COMPLETED, job.log
    return job


def test_run_validation_sources_are_evaluated_not_trained(first: TrainerRun) -> None:
    outcome = first.outcome
    assert outcome.dataset
    assert outcome.progress
    assert (outcome.dataset.kept, outcome.dataset.validation) == (16, 5)
    metrics = first.read_metrics()
    assert metrics["evalLoss"] < metrics["baseEvalLoss"]
    assert outcome.progress.eval_loss == pytest.approx(metrics["evalLoss"])
    manifest = json.loads(first.s3.get(f"{first.output}/manifest.json"))
    assert "s3://data/held-out.jsonl" in [entry["uri"] for entry in manifest["inputs"]]


def test_run_adapter_uri_continues_from_its_loss(
    pods: Callable[[str], TrainerRun], first: TrainerRun, forks: ForkServer
) -> None:
    second = set_inputs(pods("second"), "more", adapterURI=first.output)
    assert forks.run(second, **SHAPE) is Reason.COMPLETED, second.log
    evaluation = json.loads(second.s3.get(f"{second.output}/evaluation.json"))
    first_loss = evaluation["validationLosses"][0]["loss"]
    assert first_loss == pytest.approx(first.read_metrics()["evalLoss"], abs=1e-5)
    measure = next(measure for measure in evaluation["measures"] if measure["name"] == "evalLoss")
    metrics = second.read_metrics()
    assert (metrics["evalLoss"], metrics["baseEvalLoss"]) == (measure["tuned"]["value"], measure["base"]["value"])
    assert metrics["baseEvalLoss"] > first_loss, "the base model has no adapter"
    s3, name = first.s3, "adapter_model.safetensors"
    assert s3.get(f"{first.output}/{name}") != s3.get(f"{second.output}/{name}")
    inputs = [entry["uri"] for entry in json.loads(s3.get(f"{second.output}/manifest.json"))["inputs"]]
    assert [f"{first.output}/{file_name}" in inputs for file_name in ("adapter_config.json", name)] == [True, True]

    assert forks.run(second, **SHAPE) is Reason.ALREADY_COMPLETE
    s3.put(f"{first.output}/{name}", s3.get(f"{second.output}/{name}"))
    assert forks.run(second, **SHAPE) is Reason.INPUTS_CHANGED, second.log


@pytest.mark.parametrize(
    ("hidden", "layers", "reason", "expected_message"),
    [
        (64, 2, Reason.COMPLETED, "the adapter names the base model s3://models/resume/, not s3://models/"),
        (128, 2, Reason.MODEL_INVALID, "its weights do not match this base model"),
        (
            64,
            3,
            Reason.MODEL_INVALID,
            "the base model has 21 modules with these names, but the adapter has weights for 14",
        ),
    ],
    ids=["same shape", "wider", "deeper"],
)
def test_run_adapter_of_other_base_model_is_checked(
    pods: Callable[[str], TrainerRun],
    first: TrainerRun,
    forks: ForkServer,
    tmp_path: Path,
    hidden: int,
    layers: int,
    reason: Reason,
    expected_message: str,
) -> None:
    uri, folder = f"s3://models/{tmp_path.name}", tmp_path / "other"
    forks.build_model(folder, hidden=hidden, layers=layers)
    for path in folder.iterdir():
        first.s3.put(f"{uri}/{path.name}", path.read_bytes())
    second = set_inputs(pods("second"), "more", adapterURI=first.output, uri=uri)
    assert forks.run(second, **SHAPE) is reason, second.log
    assert expected_message in second.log


def test_run_adapter_uri_without_adapter_is_refused(pods: Callable[[str], TrainerRun], forks: ForkServer) -> None:
    job = set_inputs(pods("job"), adapterURI="s3://models/resume/")
    assert forks.run(job, **SHAPE) is Reason.MODEL_NOT_FOUND
    assert "s3://models/resume/ has no adapter_config.json" in job.outcome.message
