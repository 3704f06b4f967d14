"""Tests of the check that the weights of an adapter are those that servers expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.adapter_keys import check_adapter_keys
from finetune_trainer.modeling.loading import load_model

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

QUERIES = config({"lora": {"targetModules": ["q_proj"]}})


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("r", 4, "4 of 4 weights of the adapter do not fit LlamaForCausalLM"),
        ("target_modules", {"q_proj", "k_proj"}, "0 of 4 weights .* and 4 of its weights are not in the adapter"),
        ("target_modules", {"k_proj"}, "4 of 4 weights .* and 4 of its weights are not in the adapter"),
    ],
    ids=["other rank", "fewer modules", "other modules"],
)
def test_check_adapter_keys_weights_that_differ_from_settings_are_refused(
    tmp_path: Path, setting: str, value: object, problem: str
) -> None:
    base = build(tmp_path / "base")
    model = load_model(QUERIES, base, "transformers")
    vars(model.peft_config["default"])[setting] = value  # what adapter_config.json would say
    with pytest.raises(TrainerError, match=problem) as caught:
        check_adapter_keys(model, base)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_check_adapter_keys_class_unknown_to_transformers_is_a_warning(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(content | {"architectures": ["YiForCausalLM"]}))
    finding = check_adapter_keys(load_model(QUERIES, base, "transformers"), base)
    assert finding.status == "warning"
    assert finding.message == (
        "config.json names YiForCausalLM, which is no class of transformers for its model_type; the adapter fits "
        "LlamaForCausalLM"
    )
