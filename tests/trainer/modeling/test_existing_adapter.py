"""Tests of the adapters that `model.adapterURI` accepts, by their settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config, import_libraries

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import existing_adapter_settings
from finetune_trainer.modeling.existing_adapter import check_adapter


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
def test_settings_every_field_of_peft_is_classified() -> None:
    import_libraries()
    from peft import LoraConfig

    groups = [
        existing_adapter_settings.COMPARED,
        existing_adapter_settings.SELECTIONS,
        existing_adapter_settings.IRRELEVANT,
        set(existing_adapter_settings.NEUTRAL_VALUES),
    ]
    classified = sorted(name for group in groups for name in group)
    assert classified == sorted(field.name for field in dataclasses.fields(LoraConfig))
    defaults = LoraConfig().to_dict()
    existing_adapter_settings.check_settings(defaults)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank_pattern", {"q_proj": 32}),
        ("alpha_pattern", {"q_proj": 8}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("lora_bias", True),
        ("use_qalora", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [1]),
        ("task_type", "SEQ_CLS"),
        ("layers_to_transform", [0]),
        ("setting_of_the_future", 3),
    ],
)
def test_settings_that_change_the_result_are_refused(name: str, value: object) -> None:
    with pytest.raises(TrainerError) as caught:
        existing_adapter_settings.check_settings({"r": 8, name: value})
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert caught.value.message.startswith(f"model.adapterURI: the adapter_config.json has {name} {value!r}, which ")


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"layers_to_transform": None, "layers_pattern": "layers"},
        {"unknown": None},
        {"lora_dropout": 0.1},
    ],
)
def test_settings_without_effect_are_accepted(settings: dict[str, Any]) -> None:
    existing_adapter_settings.check_settings(settings)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"target_parameters": []}, None),
        ({"target_parameters": ["down_proj"]}, r"targetParameters is \[\], but .* is \['down_proj'\]"),
        ({"r": 3}, "rank is 16, but .* is 3"),
        ({"r": "16"}, "r in adapter_config.json is '16', expected a number"),
        ({"lora_alpha": None}, "lora_alpha in adapter_config.json is None, expected a number"),
        ({"use_rslora": True}, "variant is lora, but .* is rslora"),
        ({"peft_type": "LOHA"}, "peft_type is LOHA, expected LORA"),
        ({"bias": "all"}, "has bias 'all'"),
    ],
    ids=[
        "equal",
        "no parameters",
        "parameters",
        "rank",
        "rank as text",
        "no alpha",
        "variant",
        "kind",
        "another setting",
    ],
)
def test_check_adapter_compares_stored_adapter_with_config(
    tmp_path: Path, changes: dict[str, Any], problem: str | None
) -> None:
    lora = config().training.lora
    content = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha} | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    if problem is None:
        check_adapter(config(), tmp_path)
        return
    with pytest.raises(TrainerError, match=problem):
        check_adapter(config(), tmp_path)
