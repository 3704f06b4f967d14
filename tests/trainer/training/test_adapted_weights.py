"""Training of fused experts and of single tokens: gradients, export, continued training and merge."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, build
from tests.support.trainer.tiny_training import RunTraining, TrainingOutcome

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
TOKENS = ["<|im_end|>", "<|im_start|>"]


def compute_reloaded_logits(base: Path, adapter: Path) -> torch.Tensor:
    """Return the logits of plain PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=probe_tokens()).logits
    return logits


def compute_merged_logits(trained: TrainingOutcome, folder: Path) -> torch.Tensor:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_trainer.publishing.merge import merge_weights

    merge_weights(trained.model, lambda: None).save_pretrained(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = merged(input_ids=probe_tokens()).logits
    return logits


@cache
def probe_tokens() -> torch.Tensor:
    import torch

    return torch.tensor([[2, 30, 31, 3, 40, 41, 3, 2]])


def check_adapter(run: RunTraining, base: Path, lora: dict[str, Any], trained: TrainingOutcome) -> None:
    """Compare the model in memory with the exported adapter in plain PEFT, in a continued run, and merged."""
    import torch

    adapter = trained.folder / "adapter"
    with torch.no_grad():
        memory = trained.model.eval()(input_ids=probe_tokens()).logits
    assert torch.allclose(compute_reloaded_logits(base, adapter), memory, atol=1e-5)
    again = run(base, adapter=str(adapter), lora=lora, maxSteps=1, validate=True)
    assert again.metrics["baseEvalLoss"] == pytest.approx(trained.metrics["evalLoss"], abs=1e-4)
    assert torch.allclose(compute_merged_logits(trained, trained.folder / "merged"), memory, atol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_target_parameters_train_experts(run: RunTraining, tmp_path: Path, family: str) -> None:
    base = build_family(tmp_path / "base", family)
    lora = {"rank": 4, "targetParameters": EXPERTS}
    trained = run(base, lora=lora, maxSteps=2, validate=True)
    assert {name.split(".lora_")[0] for name in trained.weights if "experts" in name} == {
        f"base_model.model.model.layers.{layer}.mlp.experts{nested}"
        for layer in (0, 1)
        for nested in ("", ".base_layer")
    }
    assert all(bool(weight.any()) for name, weight in trained.weights.items() if ".lora_B." in name)
    settings = json.loads((trained.folder / "adapter" / "adapter_config.json").read_text())
    assert sorted(settings["target_parameters"]) == sorted(EXPERTS)
    check_adapter(run, base, lora, trained)


@pytest.mark.parametrize("tied", [True, False])
def test_trainable_tokens_train_only_named_rows(run: RunTraining, tmp_path: Path, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = build_family(tmp_path / "base", "llama", tie_word_embeddings=tied)
    lora = {"rank": 4, "trainableTokens": TOKENS}
    trained = run(base, lora=lora, maxSteps=2, validate=True)
    check_adapter(run, base, lora, trained)
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (base, trained.folder / "merged")
    )
    for module in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(model, module)().weight for model in (before, after))
        assert set((old != new).any(dim=1).nonzero().flatten().tolist()) == {2, 3}


def test_trainable_tokens_text_of_several_tokens_is_refused(run: RunTraining) -> None:
    message = r"trainableTokens: 'hello' is not one token of the vocabulary, it splits into \['he', 'l', 'l', 'o'\]"
    with pytest.raises(TrainerError, match=message) as caught:
        run(lora={"trainableTokens": ["hello"]})
    assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("setting", ["targetParameters", "trainableTokens"])
def test_unsloth_parameters_and_tokens_are_refused(setting: str) -> None:
    from tests.support.trainer.tiny_model import config

    from finetune_trainer.modeling.backends import choose_backend

    with pytest.raises(TrainerError, match="unsloth supports neither") as caught:
        choose_backend(config({"backend": "unsloth", "lora": {setting: ["x"]}}))
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_adapter_with_other_tokens_is_refused(run: RunTraining, tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    stored = str(run(base, lora={"trainableTokens": ["<|im_end|>"]}, maxSteps=1).folder / "adapter")
    with pytest.raises(TrainerError, match=r"trainableTokens is .*\[2\].*, but that of .*\[3\]") as caught:
        run(base, adapter=stored, lora={"trainableTokens": ["<|im_start|>"]}, maxSteps=1)
    assert caught.value.reason is Reason.CONFIG_INVALID
