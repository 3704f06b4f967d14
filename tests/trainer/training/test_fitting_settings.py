"""The recommended settings: which ones fit a GPU, and which of them are the fastest."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from tests.support.trainer.model_shapes import LLAMA_8B, make_config

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_trainer.config.loader import find_broken_rules
from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training.fitting_settings import Fields, RunSize, find_fastest, find_nearest
from finetune_trainer.training.steps import resolve_accumulation

EQUAL = RunSize(LLAMA_8B, np.full(1000, 2048))
MIXED = RunSize(LLAMA_8B, np.tile([128, 512, 1024, 2048], 250))


def test_fastest_settings_keep_activations_if_there_is_room() -> None:
    settings = find_fastest(make_config(), EQUAL, 80e9)
    assert settings
    assert settings.fields == {"training.gradientCheckpointing": False}
    assert settings.relative_time == pytest.approx(2 / 3)
    assert settings.memory.total * 1.1 <= 80e9


def test_fastest_settings_avoid_padding_of_rows_of_different_length() -> None:
    config = make_config(batchSize=8, gradientAccumulation=1, backend="transformers")
    settings = find_fastest(config, MIXED, 80e9)
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


def test_fastest_settings_keep_unsloth_and_options_of_the_model() -> None:
    """Backend auto would choose transformers for `paddingFree`, and some families mix the rows of a sequence."""
    automatic = find_fastest(make_config(batchSize=8, gradientAccumulation=1), MIXED, 80e9)
    mixing = RunSize(replace(LLAMA_8B, unsupported=frozenset({"packs"})), MIXED.lengths)
    settings = find_fastest(make_config(batchSize=8, gradientAccumulation=1, backend="transformers"), mixing, 80e9)
    assert automatic
    assert settings
    assert automatic.fields["training.batching"] == settings.fields["training.batching"] == "byLength"


@pytest.mark.parametrize(
    ("changes", "unsupported"),
    [
        ({"output": {"merged": True}}, ()),
        ({"kernels": "liger"}, ("nf4",)),
        ({"method": "kto", "batchSize": 4}, ("nf4",)),
        ({}, ("nf4", "shards")),
    ],
    ids=["merged", "liger", "kto", "model"],
)
def test_nearest_settings_are_none_if_sharding_would_be_refused(
    changes: dict[str, Any], unsupported: tuple[str, ...]
) -> None:
    size = RunSize(replace(LLAMA_8B, unsupported=frozenset(unsupported)), EQUAL.lengths)
    assert find_nearest(make_config(**changes), size, 16e9) is None


SHARDED = {"gpusPerNode": 2, "sharding": "full"}


@pytest.mark.parametrize(
    ("training", "compute"),
    [
        *product(
            [
                {},
                {"batchSize": 64, "gradientAccumulation": 32},
                {"batchSize": 8, "globalBatchSize": 64},
                {"batchSize": 1, "gradientAccumulation": 1024, "method": "dpo"},
                {"batching": "packed", "backend": "transformers"},
            ],
            [{}, {"nodes": 2}, SHARDED],
        ),
        ({"method": "kto", "batchSize": 4}, {"nodes": 2}),
    ],
    ids=str,
)
def test_settings_are_accepted_by_the_api_and_fit_when_they_are_applied(
    training: dict[str, Any], compute: dict[str, Any]
) -> None:
    spec = {**make_config(**training).to_json(), "compute": compute}
    for capacity in (8e9, 24e9, 80e9):
        size = make_size(spec)
        config = TrainerConfig.model_validate({name: spec[name] for name in spec if name != "compute"})
        settings = find_fastest(config, size, capacity) or find_nearest(config, size, capacity)
        if settings is None:
            continue
        changed = apply_fields(spec, settings.fields)
        assert list(find_broken_rules(FineTuneJobSpec.model_validate(changed))) == []
        applied = TrainerConfig.model_validate({name: changed[name] for name in changed if name != "compute"})
        assert make_size(changed).estimate(applied).total == settings.memory.total
        assert find_fastest(applied, make_size(changed), capacity)
        assert count_rows(changed) == count_rows(spec)


def make_size(spec: dict[str, Any]) -> RunSize:
    compute = spec["compute"]
    return RunSize(LLAMA_8B, MIXED.lengths, count_ranks(spec), compute.get("sharding") == "full")


def count_ranks(spec: dict[str, Any]) -> int:
    return int(spec["compute"].get("nodes", 1) * spec["compute"].get("gpusPerNode", 1))


def count_rows(spec: dict[str, Any]) -> int:
    training = TrainerConfig.model_validate({name: spec[name] for name in spec if name != "compute"}).training
    return training.batch_size * resolve_accumulation(training, count_ranks(spec)) * count_ranks(spec)


def apply_fields(spec: dict[str, Any], fields: Fields) -> dict[str, Any]:
    changed = copy.deepcopy(spec)
    for path, value in fields.items():
        section, name = path.split(".")
        changed[section][name] = value
    return changed


def test_nearest_settings_are_none_if_nothing_fits() -> None:
    assert find_nearest(make_config(method="kto"), EQUAL, 2e9) is None
