"""The recommended settings: which ones fit a GPU, and which of them are the fastest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.trainer.model_shapes import LLAMA_8B, make_config

from finetune_trainer.training.fitting_settings import RunSize, find_fastest, find_nearest

EQUAL = RunSize(LLAMA_8B, np.full(1000, 2048))
MIXED = RunSize(LLAMA_8B, np.tile([128, 512, 1024, 2048], 250))


def test_fastest_settings_keep_activations_if_there_is_room() -> None:
    settings = find_fastest(make_config(), EQUAL, 80e9)
    assert settings
    assert settings.fields == {"training.gradientCheckpointing": False}
    assert settings.relative_time == pytest.approx(2 / 3)
    assert settings.memory.total * 1.1 <= 80e9


def test_fastest_settings_avoid_padding_of_rows_of_different_length() -> None:
    settings = find_fastest(make_config(batchSize=8, gradientAccumulation=1), MIXED, 80e9)
    assert settings
    assert settings.fields == {
        "training.batchSize": 4,
        "training.gradientAccumulation": 2,
        "training.gradientCheckpointing": False,
        "training.batching": "paddingFree",
    }
    assert settings.relative_time < 0.4
    assert settings.notes == []


def test_fastest_settings_of_dpo_name_what_changes() -> None:
    settings = find_fastest(make_config(method="dpo", batchSize=4, gradientAccumulation=1), MIXED, 141e9)
    assert settings
    assert settings.fields["training.batching"] == "byLength"
    assert settings.notes == ["byLength combines other rows into batches, so losses of single steps differ"]


def test_fastest_settings_are_none_if_config_does_not_fit() -> None:
    assert find_fastest(make_config(), EQUAL, 16e9) is None


@pytest.mark.parametrize(
    ("training", "gigabytes", "expected"),
    [
        ({"batchSize": 16}, 24, {"training.batchSize": 2, "training.gradientAccumulation": 32}),
        ({"gradientCheckpointing": False}, 24, {"training.gradientCheckpointing": True}),
        ({}, 16, {"model.quantization": "nf4"}),
        ({"globalBatchSize": 64, "batchSize": 64}, 24, {"training.batchSize": 2}),
    ],
    ids=["smaller batch", "recomputation", "quantization", "global batch"],
)
def test_nearest_settings_are_tried_in_order(
    training: dict[str, Any], gigabytes: int, expected: dict[str, object]
) -> None:
    settings = find_nearest(make_config(**training), EQUAL, gigabytes * 1e9)
    assert settings
    assert settings.fields.items() >= expected.items()
    assert settings.notes == (["quantization rounds the base model, so losses differ"] if gigabytes == 16 else [])


def test_nearest_settings_shard_merged_model_over_gpus_with_same_rows_per_step() -> None:
    settings = find_nearest(make_config(output={"merged": True}), EQUAL, 16e9)
    assert settings
    assert settings.fields["compute.sharding"] == "full"
    assert "model.quantization" not in settings.fields
    ranks, accumulation = (
        settings.fields["compute.gpusPerNode"],
        settings.fields.get("training.gradientAccumulation", 4),
    )
    assert int(ranks) * int(accumulation) * int(settings.fields.get("training.batchSize", 2)) == 8


def test_nearest_settings_are_none_if_nothing_fits() -> None:
    assert find_nearest(make_config(method="kto"), EQUAL, 2e9) is None
