"""Tests of the files of the merged model, and of the check that detects a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, build, config
from tests.support.trainer.tuned_model import load_tuned_model

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.loading import load_base_model
from finetune_trainer.publishing.export import export_adapter
from finetune_trainer.records.manifest import MergedLosses

if TYPE_CHECKING:
    from finetune_trainer.publishing.merge import MergeInputs

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

GENERATION = {
    "sampling numbers without do_sample": {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 3},
    "no sampling and its numbers": {"do_sample": False, "temperature": 1e-6, "top_k": 5},
    "beam search's early_stopping": {"early_stopping": True},
    "beam search's length_penalty": {"length_penalty": 2.0},
    "sampling": {"do_sample": True, "temperature": 0.7, "made_up": [1]},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


def make_merging(settings: TrainerConfig, model_dir: Path) -> MergeInputs:
    from finetune_trainer.modeling.likelihood import LabeledTokens
    from finetune_trainer.publishing.merge import MergeInputs

    ids = [number * 31 % 250 + 8 for number in range(60)]
    rows = [LabeledTokens(ids[start:], [IGNORE_INDEX, *ids[start + 1 :]]) for start in range(8)]
    return MergeInputs(settings, model_dir, {"rows": rows}, lambda: None)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_merge_model_matches_base_with_adapter(model_dir: Path, tmp_path: Path, precision: str, variant: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune_trainer.publishing.merge import merge_adapter

    settings = config({"precision": precision, "lora": {"variant": variant}})
    loaded = load_tuned_model(settings, model_dir)
    export_adapter(settings, loaded, tmp_path, "sha256:abc", model_dir)
    merge_result = merge_adapter(make_merging(settings, model_dir), loaded, tmp_path / "merged")
    tokens = torch.arange(20).reshape(2, 10)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(merge_result.folder, dtype=torch.float32)
    with torch.no_grad():
        plain = base(input_ids=tokens).logits
        expected = PeftModel.from_pretrained(base, tmp_path)(input_ids=tokens).logits
        actual = merged(input_ids=tokens).logits
    assert float((actual - expected).abs().max()) < (1e-4 if precision == "fp32" else 0.1)
    assert float((plain - expected).abs().max()) > 0.2
    assert abs(merge_result.losses["rows"].merged - merge_result.losses["rows"].adapter) < (
        1e-5 if precision == "fp32" else 0.01
    )
    assert AutoTokenizer.from_pretrained(merge_result.folder).chat_template == CHATML
    assert not [path for path in merge_result.folder.iterdir() if path.name.startswith("adapter")]
    for path in merge_result.folder.iterdir():
        assert str(model_dir).encode() not in path.read_bytes(), path.name


def test_merge_weights_rounds_once(model_dir: Path) -> None:
    import torch

    from finetune_trainer.publishing.merge import merge_weights

    settings = config({"precision": "bf16"})
    model = load_tuned_model(settings, model_dir).model
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_base_model().get_submodule(name)
    exact = layer.base_layer.weight.double() + layer.get_delta_weight("default").double()
    merged = merge_weights(model, lambda: None)
    assert torch.equal(merged.get_submodule(name).weight, exact.float().to(torch.bfloat16))


@pytest.mark.parametrize("content", GENERATION.values(), ids=GENERATION)
def test_merge_keeps_generation_config_with_eos(tmp_path: Path, content: dict[str, Any]) -> None:
    base = build(tmp_path / "base")  # imports the libraries, with their warnings off

    from finetune_trainer.publishing.merge import merge_adapter

    (base / "generation_config.json").write_text(json.dumps(content))
    merge_result = merge_adapter(make_merging(config(), base), load_tuned_model(config(), base), tmp_path / "merged")
    assert json.loads((merge_result.folder / "generation_config.json").read_text()) == content | {"eos_token_id": [3]}


def test_merge_without_generation_config_writes_eos(tmp_path: Path) -> None:
    base = build(tmp_path / "base")  # imports the libraries, with their warnings off

    from finetune_trainer.publishing.merge import merge_adapter

    (base / "generation_config.json").unlink()
    merge_result = merge_adapter(make_merging(config(), base), load_tuned_model(config(), base), tmp_path / "merged")
    stored = json.loads((merge_result.folder / "generation_config.json").read_text())
    assert stored == {"pad_token_id": 0, "eos_token_id": [3]}


def test_merge_check_model_without_adapter_raises(model_dir: Path) -> None:
    from finetune_trainer.publishing.merge_check import MergeChecker

    judge = MergeChecker(make_merging(config(), model_dir).texts, "fp32", lambda: None)
    before = judge.measure_before_merge(load_tuned_model(config(), model_dir).model)
    with pytest.raises(TrainerError, match="differs from base model and adapter") as error:
        judge.check_after_merge(before, load_base_model(config(), model_dir, "transformers"))
    assert error.value.reason is Reason.INTERNAL_ERROR
    for loss in before["rows"]:
        assert f"{loss:.4f}" in error.value.message


@pytest.mark.parametrize(
    ("base", "adapter", "merged", "passes"),
    [
        (2.5, 2.0, 2.14, True),
        (2.5, 2.0, 2.16, False),
        (4.0, 2.0, 2.49, True),
        (4.0, 2.0, 2.51, False),
        (3.0, 2.0, float("nan"), False),
        (2.11, 2.0, 2.11, False),
        (2.11, 2.0, 2.06, False),
        (2.11, 2.0, 2.04, True),
        (2.01, 2.0, 2.01, True),
    ],
    ids=[
        "rounded",
        "too far",
        "rounded after much was learned",
        "too far after much was learned",
        "not a number",
        "the base model",
        "nearer to the base model",
        "nearer to the adapter",
        "little learned",
    ],
)
def test_merge_check_accepts_loss_near_adapter(base: float, adapter: float, merged: float, passes: bool) -> None:
    from finetune_trainer.publishing.merge_check import MergeTolerance, check_merged_losses

    tolerance = MergeTolerance(max_difference=0.15, max_gain_share=0.25, min_gain=0.1)
    losses = MergedLosses.model_construct(base=base, adapter=adapter, merged=merged)
    if passes:
        check_merged_losses("rows", losses, tolerance)
        return
    with pytest.raises(TrainerError, match="its loss on rows is"):
        check_merged_losses("rows", losses, tolerance)
