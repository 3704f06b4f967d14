"""Tests of the settings of a stored adapter that `model.adapterURI` accepts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, import_libraries

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import existing_adapter_settings


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
    [{"init_lora_weights": "gaussian"}, {"layers_to_transform": [0]}, {"unknown": None}, {"lora_dropout": 0.1}],
)
def test_settings_without_effect_are_accepted(settings: dict[str, Any]) -> None:
    existing_adapter_settings.check_settings(settings)
