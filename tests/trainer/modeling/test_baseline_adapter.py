"""Adapters to compare with: they are checked before the training, and leave no trace in the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build, config
from tests.support.trainer.tuned_model import load_tuned_model

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ADAPTERS: dict[str, dict[str, Any]] = {
    "other rank and modules": {"r": 3, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 5}},
    "DoRA": {"r": 4, "use_dora": True, "target_modules": "all-linear"},
    "tokens": {"r": 2, "target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [40, 41]}},
}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


def save_adapter(base_dir: Path, folder: Path, **settings: Any) -> tuple[Path, torch.Tensor]:
    """Write an adapter that changes the model. Return its folder, and the logits of the model with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base_dir), LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and ".lora_A." not in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder, compute_logits(adapted.eval())


def compute_logits(model: PeftModel) -> torch.Tensor:
    import torch

    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([[40, 41, 42, 60, 7]])).logits
    return logits


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_use_baseline_is_the_stored_adapter_and_leaves_no_trace(
    base_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    import torch

    from finetune_trainer.modeling.baseline_adapter import check_baselines, use_baseline
    from finetune_trainer.modeling.model_config import load_model_config
    from finetune_trainer.publishing.export import list_target_modules

    folder, expected = save_adapter(base_dir, tmp_path / "old", **settings)
    check_baselines({"old": folder}, load_model_config(base_dir))
    lora = {"rank": 2, "targetModules": ["v_proj", "o_proj"]}
    model = load_tuned_model(config({"lora": lora, "backend": "transformers"}), base_dir).model.eval()
    before, names = compute_logits(model), [*dict(model.named_modules())]
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    with use_baseline(model, folder):
        torch.testing.assert_close(compute_logits(model), expected, rtol=0, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(compute_logits(model), expected, atol=1e-3)
    assert torch.equal(compute_logits(model), before)
    assert [*dict(model.named_modules())] == names
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trainable
    assert list_target_modules(model) == ["o_proj", "v_proj"]
    assert [*model.peft_config] == ["default"]


def change_settings(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | settings))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other kind": (lambda folder: change_settings(folder, peft_type="IA3"), "peft_type is IA3, expected LORA"),
    "changes the base model": (
        lambda folder: change_settings(folder, init_lora_weights="pissa"),
        "adapter_config.json has init_lora_weights 'pissa', which is not supported here",
    ),
    "other rank": (lambda folder: change_settings(folder, r=7), "8 of its 8 weights do not fit the base model"),
    "more modules": (
        lambda folder: change_settings(folder, target_modules=["q_proj", "k_proj", "v_proj"]),
        "0 of its 8 weights do not fit the base model and 4 are missing",
    ),
    "unknown module": (lambda folder: change_settings(folder, target_modules=["query"]), "query"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "Expecting property name"),
    "no object": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "is not a JSON object"),
    "cut weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"12"),
        "adapter_model.safetensors cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_check_baselines_unusable_adapter_is_refused(
    base_dir: Path, tmp_path: Path, damage: Callable[[Path], object], problem: str
) -> None:
    from finetune_trainer.modeling.baseline_adapter import check_baselines
    from finetune_trainer.modeling.model_config import load_model_config

    folder, _ = save_adapter(base_dir, tmp_path / "old", r=2, target_modules=["q_proj", "v_proj"])
    damage(folder)
    with pytest.raises(TrainerError) as error:
        check_baselines({"old": folder}, load_model_config(base_dir))
    assert error.value.reason is Reason.MODEL_INVALID
    assert error.value.message.startswith("evaluation.baselines old: the adapter cannot be compared with this model: ")
    assert problem in error.value.message


def test_check_baselines_of_other_base_model_is_refused(base_dir: Path, tmp_path: Path) -> None:
    from finetune_trainer.modeling.baseline_adapter import check_baselines
    from finetune_trainer.modeling.model_config import load_model_config

    other_dir = build(tmp_path / "wider", hidden=96)
    folder, _ = save_adapter(other_dir, tmp_path / "old", r=2, target_modules=["q_proj"])
    with pytest.raises(TrainerError, match="4 of its 4 weights do not fit the base model"):
        check_baselines({"old": folder}, load_model_config(base_dir))


@pytest.mark.parametrize(
    "settings", [{"r": 2, "target_modules": ["q_proj"]}, {"r": 2, "target_modules": ["v_proj"], "use_dora": True}]
)
def test_check_unsloth_baselines_refuses_other_modules(
    base_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from finetune_trainer.modeling.baseline_adapter import check_unsloth_baselines

    lora = {"rank": 4, "targetModules": ["v_proj"]}
    model = load_tuned_model(config({"lora": lora, "backend": "transformers"}), base_dir).model
    same, _ = save_adapter(base_dir, tmp_path / "same", r=2, target_modules=["v_proj"])
    check_unsloth_baselines({"same": same}, model)
    folder, _ = save_adapter(base_dir, tmp_path / "old", **settings)
    with pytest.raises(TrainerError, match=r"set training\.backend to transformers") as error:
        check_unsloth_baselines({"same": same, "old": folder}, model)
    assert error.value.reason is Reason.CONFIG_INVALID
