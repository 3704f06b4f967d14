"""Tests of what a run needs on its scratch volume, by part."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import config

from finetune_trainer.contract import Output, Storage
from finetune_trainer.inputs.base_model import HubModelSource
from finetune_trainer.inputs.data_files import FileSelection
from finetune_trainer.inputs.data_sources import VolumeDataListing
from finetune_trainer.inputs.hub import HubSnapshot
from finetune_trainer.inputs.resolve import ResolvedInputs
from finetune_trainer.storage import S3
from finetune_trainer.training.scratch_needs import ModelSizes, list_download_parts, list_training_parts

SIZES = ModelSizes(parameters=1_000_000, adapter_parameters=10_000, adapter_tensors=4)
CHECKPOINT = 10_000 * 12 + 4 * 1000 + 5 * 280 + 20_000


@pytest.mark.parametrize(
    ("training", "is_merged", "expected"),
    [
        ({}, False, {"checkpoints": 3 * CHECKPOINT, "new adapter": 40_000, "merged model": 0}),
        ({}, True, {"checkpoints": 3 * CHECKPOINT, "new adapter": 40_000, "merged model": 2_000_000}),
        (
            {"earlyStopping": {"patience": 2}},
            False,
            {"checkpoints": 3 * (CHECKPOINT + 40_000), "new adapter": 40_000, "merged model": 0},
        ),
    ],
    ids=["adapter", "merged model", "best adapter in checkpoints"],
)
def test_training_parts_are_counted(training: dict[str, Any], is_merged: bool, expected: dict[str, int]) -> None:
    job_config = config(training)
    job_config = job_config.model_copy(update={"output": Output(uri="s3://results/x", merged=is_merged)})
    assert list_training_parts(job_config, SIZES, steps=5, bytes_per_parameter=2) == expected


def resolve_hub_model(weights_size: int) -> ResolvedInputs:
    model = HubModelSource(HubSnapshot("a/b", "c0ffee", {"config.json": 500, "model.safetensors": weights_size}))
    data = VolumeDataListing("pvc://rows/", Path("/rows"), FileSelection(["a.jsonl"]), size=300)
    return ResolvedInputs(S3(Storage()), config({}), model, [data])


def test_download_parts_are_those_of_the_listing() -> None:
    resolved = resolve_hub_model(10_000)
    expected = {"base model": 10_500, "adapters": 0, "data": 300, "prepared data": 300}
    assert list_download_parts(resolved, resolved.model.size) == expected
    assert list_download_parts(resolved, 0) == {**expected, "base model": 0}, "the base model is cached"


def test_download_parts_without_size_of_weights_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert list_download_parts(resolve_hub_model(0), 500)["base model"] == 500
    assert "the hub does not list the size of all weights" in caplog.text
