"""The progress of a run on one line."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_cli.progress_view import describe_progress
from finetune_operator.api import FineTuneJob

SPEC = {
    "model": {"uri": "s3://models/a"},
    "dataset": {"sources": [{"uri": "s3://data/a.jsonl"}]},
    "training": {"epochs": 1},
    "output": {"uri": "s3://out/a"},
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"loss": 1.25, "evalLoss": 1.5}, "Training, step 3/9, loss 1.25, eval loss 1.5"),
        ({"loss": 0.0, "reward": 0.5, "flatGroups": 0.25}, "Training, step 3/9, reward 0.5"),
    ],
    ids=["loss", "reward"],
)
def test_progress_shows_what_a_step_is_judged_by(values: dict[str, Any], expected: str) -> None:
    progress = {"stage": "Training", "step": 3, "totalSteps": 9, "lastUpdateTime": "2026-12-01T00:00:00Z", **values}
    metadata = {"name": "a", "namespace": "b", "uid": "c"}
    job = FineTuneJob.model_validate({"metadata": metadata, "spec": SPEC, "status": {"progress": progress}})
    assert describe_progress(job).endswith(expected)
