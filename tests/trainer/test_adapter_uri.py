"""A run that goes on from a published adapter, with validation data of its own: all of it from the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.trainer.pods import Pods, make_pods

from finetune_trainer.contract import Reason

if TYPE_CHECKING:
    from tests.trainer.forked_pods import Forks
    from tests.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]

SHAPE: dict[str, Any] = {"maxSteps": 6, "batchSize": 4, "gradientAccumulation": 1, "lora": {"rank": 4}}


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in rows).encode()


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: Forks) -> Callable[[str], Pods]:
    s3.put("s3://data/more.jsonl", lines([{"prompt": f"Is it {n}?", "completion": f"Yes, {n}."} for n in range(12)]))
    s3.put("s3://data/held-out.jsonl", lines([{"prompt": f"Why {n}?", "completion": f"It is {n}."} for n in range(5)]))
    return make_pods(s3, tmp_path, forks.build)


def with_parts(pods: Pods, data: str = "resume", **model: str) -> Pods:
    validation = {"sources": [{"uri": "s3://data/held-out.jsonl"}]}
    pods.changes = {
        "dataset": {"sources": [{"uri": f"s3://data/{data}.jsonl"}], "validation": validation},
        "model": dict(model),
    }
    return pods


@pytest.fixture
def first(pods: Callable[[str], Pods], forks: Forks) -> Pods:
    """Has published an adapter."""
    made = with_parts(pods("first"))
    assert forks.run(made, **SHAPE) is Reason.COMPLETED, made.log
    return made


def test_validation_data_of_its_own_is_looked_at_and_not_trained_on(first: Pods) -> None:
    outcome = first.outcome
    assert outcome.dataset
    assert outcome.progress
    assert (outcome.dataset.kept, outcome.dataset.validation) == (16, 5)
    metrics = first.metrics()
    assert metrics["evalLoss"] < metrics["baseEvalLoss"]
    assert outcome.progress.eval_loss == pytest.approx(metrics["evalLoss"])
    manifest = json.loads(first.s3.get(f"{first.output}/manifest.json"))
    assert "s3://data/held-out.jsonl" in [each["uri"] for each in manifest["inputs"]]


def test_goes_on_where_the_other_ended(pods: Callable[[str], Pods], first: Pods, forks: Forks) -> None:
    second = with_parts(pods("second"), "more", adapterURI=first.output)
    assert forks.run(second, **SHAPE) is Reason.COMPLETED, second.log
    assert second.metrics()["baseEvalLoss"] == pytest.approx(first.metrics()["evalLoss"], abs=1e-5)
    s3, name = first.s3, "adapter_model.safetensors"
    assert s3.get(f"{first.output}/{name}") != s3.get(f"{second.output}/{name}")
    inputs = [each["uri"] for each in json.loads(s3.get(f"{second.output}/manifest.json"))["inputs"]]
    assert [f"{first.output}/{each}" in inputs for each in ("adapter_config.json", name)] == [True, True]

    assert forks.run(second, **SHAPE) is Reason.ALREADY_COMPLETE
    s3.put(f"{first.output}/{name}", s3.get(f"{second.output}/{name}"))
    assert forks.run(second, **SHAPE) is Reason.INPUTS_CHANGED, second.log


@pytest.mark.parametrize(
    ("hidden", "layers", "reason", "why"),
    [
        (64, 2, Reason.COMPLETED, "the adapter says that it was made for s3://models/resume/, not for s3://models/"),
        (128, 2, Reason.MODEL_INVALID, "its weights do not fit this base model"),
        (64, 3, Reason.MODEL_INVALID, "the base model has 21 modules of these names, the adapter is for 14"),
    ],
    ids=["same shape", "wider", "deeper"],
)
def test_an_adapter_of_another_base(
    pods: Callable[[str], Pods],
    first: Pods,
    forks: Forks,
    tmp_path: Path,
    hidden: int,
    layers: int,
    reason: Reason,
    why: str,
) -> None:
    uri, folder = f"s3://models/{tmp_path.name}", tmp_path / "other"
    forks.build(folder, hidden=hidden, layers=layers)
    for path in folder.iterdir():
        first.s3.put(f"{uri}/{path.name}", path.read_bytes())
    second = with_parts(pods("second"), "more", adapterURI=first.output, uri=uri)
    assert forks.run(second, **SHAPE) is reason, second.log
    assert why in second.log


def test_a_prefix_without_an_adapter(pods: Callable[[str], Pods], forks: Forks) -> None:
    job = with_parts(pods("job"), adapterURI="s3://models/resume/")
    assert forks.run(job, **SHAPE) is Reason.MODEL_NOT_FOUND
    assert "s3://models/resume/ holds no adapter_config.json" in job.outcome.message
