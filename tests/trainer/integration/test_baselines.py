"""A run compares its adapter with that of an earlier run, on the same rows, and refuses adapters of other models."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Reason, Result, Verdicts

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


def require_digest(job: TrainerRun, digest: str) -> None:
    job.changes["evaluation"]["baselines"][0]["digest"] = digest


def get_result(job: TrainerRun) -> Result:
    assert job.outcome.result, job.log
    return job.outcome.result


def compute_loss_change(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    """Return the change of the loss per token between the published models of two runs, from their own files."""
    losses = [(row["scores"]["tuned"], later[digest]["scores"]["tuned"]) for digest, row in earlier.items()]
    change = sum(new["lossSum"] - old["lossSum"] for old, new in losses)
    return float(change / sum(old["lossTokens"] for old, _ in losses))


def test_baseline_of_earlier_run_has_the_results_of_that_run(
    pods: Callable[..., TrainerRun], forks: ForkServer
) -> None:
    may = pods("may")
    assert forks.run(may, maxSteps=2) is Reason.COMPLETED, may.log
    june = pods("june", may=may.output)
    require_digest(june, get_result(may).digest)
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
    check_comparison(june, compute_loss_change(earlier, later), get_result(may).digest)
    assert get_result(may).baselines is None
    result = june.outcome.result
    assert forks.run(june, maxSteps=4, lora={"rank": 2}) is Reason.ALREADY_COMPLETE, june.log
    assert june.outcome.result == result


def check_comparison(job: TrainerRun, loss_change: float, digest: str) -> None:
    """Check the comparison that the operator gets."""
    result = get_result(job)
    evaluation = json.loads(job.s3.get(f"{job.output}/evaluation.json"))
    overfitting, forgetting = (evaluation[aspect]["verdict"] for aspect in ("overfitting", "forgetting"))
    assert result.verdicts == Verdicts(overfitting=overfitting, forgetting=forgetting, bias="unknown")
    assert result.baselines
    (comparison,) = result.baselines
    assert (comparison.name, comparison.digest, comparison.held_out) == ("may", digest, True)
    assert [change.metric for change in comparison.changes] == ["evalLoss", "exactMatch", "chrf", "perplexity"]
    change = comparison.changes[0]
    assert change.change == pytest.approx(loss_change, rel=1e-5)
    assert change.value == pytest.approx(result.metrics["evalLoss"], rel=1e-5)
    assert (change.samples, change.low, change.higher_is_better) == (6, None, False)
    assert change.p_value is not None


def test_baseline_with_other_validation_rows_is_not_held_out(
    pods: Callable[..., TrainerRun], forks: ForkServer
) -> None:
    first = pods("first")
    del first.changes["evaluation"]
    assert forks.run(first, maxSteps=1) is Reason.COMPLETED, first.log
    rows = read_rows(first)
    assert len(rows) == 6, "the losses are published without a task"
    assert {(row["reference"], len(row["answers"]), *row["scores"]) for row in rows.values()} == {
        ("", 0, "base", "tuned")
    }
    second = pods("second", first=first.output)
    second.changes["dataset"]["validation"] = {"fraction": 0.4, "seed": 7}
    second.changes["evaluation"]["task"] = None
    assert forks.run(second, maxSteps=1) is Reason.COMPLETED, second.log
    assert read_rows(second).keys() != rows.keys()
    baselines = get_result(second).baselines
    assert baselines
    assert [(baseline.digest, baseline.held_out) for baseline in baselines] == [(get_result(first).digest, False)]
    assert "which makes that one look better than it is" in second.s3.get(f"{second.output}/report.html").decode()


def test_baseline_of_other_result_is_refused_before_the_download(
    pods: Callable[..., TrainerRun], forks: ForkServer, s3: S3Server
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        s3.put(f"s3://data/replaced/{name}", b"{}")
    digest = "sha256:" + "0" * 64
    refused = pods("replaced", old="s3://data/replaced")
    require_digest(refused, digest)
    for content, found in ((None, "no manifest.json"), (b"{}", f"the digest sha256:{sha256(b'{}').hexdigest()}")):
        if content:
            s3.put("s3://data/replaced/manifest.json", content)
        assert forks.run(refused) is Reason.MODEL_INVALID, refused.log
        message = refused.outcome.message
        assert message.startswith("evaluation.baselines old: s3://data/replaced has ")
        assert f"{found}, and the required digest is {digest}; set adapterURI and digest" in message
        assert "stage: Downloading" not in refused.log
    require_digest(refused, f"sha256:{sha256(b'{}').hexdigest()}")
    assert forks.run(refused) is Reason.MODEL_INVALID, refused.log
    assert "manifest.json is not a manifest that this trainer can read" in refused.outcome.message


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
