"""Multimodal base models are trained on text, as the class that servers load, without their other parts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.model_families import build_family
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config
from tests.support.trainer.tiny_training import ROWS_BY_METHOD, RunTraining

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.model_files import check_model_dir
from finetune_trainer.modeling.adapter_keys import check_adapter_keys
from finetune_trainer.modeling.generation import generate_completions
from finetune_trainer.modeling.loading import load_model
from finetune_trainer.planning.model_shape import compute_model_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

TRAINED_FAMILIES = ("gemma3", "gemma4", "qwen2_5_vl", "qwen3_5", "mistral3", "llama4")
SINGLE_BATCH = {"maxSteps": 2, "batchSize": 8, "warmupRatio": 0}


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def compute_cross_entropy(model: PreTrainedModel, rows: dict[str, Any]) -> float:
    """Return the mean loss of the supervised tokens in nats, from the logits of one row at a time."""
    import torch

    losses = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        targets = torch.tensor(labels[1:])
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none")[targets != -100])
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("family", TRAINED_FAMILIES)
def test_training_adapter_has_effect_on_class_of_config(run: RunTraining, tmp_path: Path, family: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForMultimodalLM

    base = build_family(tmp_path / "base", family)
    check_model_dir(base)
    served = AutoModelForMultimodalLM.from_pretrained(base).eval()
    named_class = json.loads((base / "config.json").read_text())["architectures"]
    assert named_class == [type(served).__name__]
    base_loss = compute_cross_entropy(served, dict(ROWS_BY_METHOD["sft"]))
    trained = run(base, validate=True, **SINGLE_BATCH)
    assert trained.losses[0] == pytest.approx(base_loss, rel=1e-5)
    assert trained.metrics["evalLoss"] < base_loss
    assert trained.trainable == compute_model_shape(config(), base).trainable
    assert not [name for name in trained.weights if "vision" in name or "visual" in name or "audio" in name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT only warns of weights that it cannot place
        adapted = PeftModel.from_pretrained(served, str(trained.folder / "adapter")).eval()
    tuned_loss = compute_cross_entropy(adapted, dict(ROWS_BY_METHOD["sft"]))
    assert tuned_loss == pytest.approx(trained.metrics["evalLoss"], rel=1e-4)
    ids = torch.tensor([[40, 41, 42]])
    with torch.no_grad():
        assert torch.equal(adapted(input_ids=ids).logits, trained.model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_training_of_text_class_with_same_weights_is_the_same(run: RunTraining, tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    base, text_base = build_family(tmp_path / "base", family), tmp_path / "text"
    whole = AutoModelForMultimodalLM.from_pretrained(base)
    text = AutoModelForCausalLM.from_config(whole.config.get_text_config())
    text.model.load_state_dict(whole.get_decoder().state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    text.save_pretrained(text_base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (text_base / name).write_bytes((base / name).read_bytes())
    runs = [run(folder, validate=True, **SINGLE_BATCH) for folder in (base, text_base)]
    assert type(runs[1].model.get_base_model()).__name__.endswith("ForCausalLM")
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-5)
    assert runs[0].metrics["evalLoss"] == pytest.approx(runs[1].metrics["evalLoss"], abs=1e-5)


def test_load_model_text_class_of_multimodal_config_is_loaded(tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", "qwen3_5")
    change_config(base, architectures=["Qwen3_5ForCausalLM"])
    model = load_model(config(), base, "transformers")
    assert type(model.get_base_model()).__name__ == "Qwen3_5ForCausalLM"
    assert check_adapter_keys(model, base).status == "passed"


def test_load_model_named_targets_exclude_vision_tower(tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", "gemma3")
    model = load_model(config({"lora": {"targetModules": ["q_proj", "k_proj"]}}), base, "transformers")
    assert sorted(model.base_model.targeted_module_names) == [
        f"model.language_model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("k_proj", "q_proj")
    ]


def test_generate_multimodal_model_answers_text(tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", "qwen2_5_vl")
    assert len(generate_completions(base, None, ["How do I turn the lamp on?"], 4)) == 1


def test_merged_multimodal_model_is_complete(run: RunTraining, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForMultimodalLM

    from finetune_trainer.modeling.likelihood import LabeledTokens
    from finetune_trainer.publishing.merge import MergeInputs, merge_adapter

    base = build_family(tmp_path / "base", "gemma3")
    (base / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    trained = run(base, validate=True, **SINGLE_BATCH)
    assert trained.loaded is not None
    ids = torch.tensor([[40, 41, 42]])
    with torch.no_grad():
        expected = trained.model.eval()(input_ids=ids).logits
    rows = ROWS_BY_METHOD["sft"]
    texts = {"rows": [LabeledTokens(*row) for row in zip(rows["input_ids"], rows["labels"], strict=True)]}
    merge_adapter(MergeInputs(config(), base, texts, lambda: None), trained.loaded, tmp_path / "merged")
    merged = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged").eval()
    assert type(merged).__name__ == "Gemma3ForConditionalGeneration"
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-3)
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()


def test_adapter_keys_of_other_class_are_unsupported(tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", "qwen3_5")
    finding = check_adapter_keys(load_model(config(), base, "transformers"), base)
    assert finding.message == (
        "all 30 weights of the adapter fit Qwen3_5ForConditionalGeneration, the class that config.json names"
    )
    served_class = json.loads((base / "config.json").read_text())["architectures"]
    change_config(base, architectures=["Qwen3_5ForCausalLM"])
    adapted = load_model(config(), base, "transformers")
    change_config(base, architectures=served_class)
    with pytest.raises(
        TrainerError, match="30 of 30 weights of the adapter do not fit Qwen3_5ForConditionalGeneration"
    ) as caught:
        check_adapter_keys(adapted, base)
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
