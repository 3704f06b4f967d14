"""Tests of `dpo` and `kto` that start from an adapter: the reference model, compared with plain TRL."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from tests.support.trainer import plain_trl_training
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import ROWS_BY_METHOD, RunTraining, TrainingOutcome

from finetune_trainer.modeling.loading import load_tokenizer

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

STARTS = {"dpo": math.log(2), "kto": 0.5}
"""The loss of a model that equals its reference, by method."""


def train_adapter(run: RunTraining, **settings: Any) -> str:
    """Return the folder of an adapter that clearly differs from the base model."""
    return str(run(**settings, maxSteps=6, learningRate=1e-2).folder / "adapter")


@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16", "gradientCheckpointing": True}, {"source": {"quantization": "nf4"}}],
    ids=["bf16", "nf4"],
)
def test_dpo_from_adapter_starts_at_ln_2(run: RunTraining, settings: dict[str, Any]) -> None:
    adapter = train_adapter(run, **settings)
    trained = run(method="dpo", adapter=adapter, validate=True, learningRate=1e-3, **settings)
    assert [trained.losses[0], trained.metrics["baseEvalLoss"]] == pytest.approx([STARTS["dpo"]] * 2, abs=1e-6)
    assert trained.metrics["evalLoss"] < STARTS["dpo"]


def test_dpo_from_adapter_with_trained_tokens_starts_at_ln_2(run: RunTraining, model_dir: Path) -> None:
    prompt_start = ROWS_BY_METHOD["dpo"]["prompt_ids"][2][0]
    tokens = load_tokenizer(model_dir).convert_ids_to_tokens([prompt_start])
    lora = {"trainableTokens": tokens}
    trained = run(method="dpo", adapter=train_adapter(run, lora=lora), lora=lora, warmupRatio=0)
    assert trained.losses[0] == pytest.approx(STARTS["dpo"], abs=1e-6)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_unsloth_from_adapter_starts_at_reference(run: RunTraining, method: str) -> None:
    adapter = train_adapter(run, backend="unsloth")
    trained = run(method=method, adapter=adapter, validate=True, maxSteps=6, backend="unsloth")
    assert trained.metrics["baseEvalLoss"] == pytest.approx(STARTS[method], abs=1e-6)
    assert trained.metrics["evalLoss"] < 0.95 * STARTS[method]


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preference_losses_from_adapter_match_plain_trl(
    run: RunTraining, model_dir: Path, method: str, variant: str
) -> None:
    lora = {"variant": variant, "rank": 8}
    adapter = train_adapter(run, lora=lora)
    trained = run(method=method, adapter=adapter, lora=lora, learningRate=1e-3, warmupRatio=0)
    options = plain_trl_training.TrainingOptions(learning_rate=1e-3)
    rows = ROWS_BY_METHOD[method] if method == "dpo" else build_kto_rows(options.batch_size)
    expected = plain_trl_training.train_on_preferences(method, model_dir, Path(adapter), dict(rows), options)
    assert trained.losses == pytest.approx(expected, abs=1e-6)
    assert expected[0] == pytest.approx(STARTS[method], abs=1e-6)
    assert expected[-1] < expected[0]
    assert_single_adapter(trained)


def build_kto_rows(batch_size: int) -> dict[str, list[Any]]:
    """Return the rows in the order of training, each with the answer of the previous row of its batch for the KL
    term."""
    import torch

    order = torch.randperm(8, generator=torch.Generator().manual_seed(42)).tolist()
    rows = {name: [column[index] for index in order] for name, column in ROWS_BY_METHOD["kto"].items()}
    answers = rows["completion_ids"]
    batches = [answers[start : start + batch_size] for start in range(0, len(answers), batch_size)]
    return rows | {"KL_completion_ids": [answer for batch in batches for answer in (batch[-1], *batch[:-1])]}


def assert_single_adapter(trained: TrainingOutcome) -> None:
    """Assert that the reference is neither published nor left in the model, and that the adapter is trainable."""
    assert list(trained.model.peft_config) == ["default"]
    assert trained.model.active_adapter == "default"
    assert trained.trainable == sum(weight.numel() for weight in trained.weights.values())
    assert not [path for path in (trained.folder / "adapter").iterdir() if path.is_dir()]


def test_dpo_reference_base_compares_with_base_model(run: RunTraining, model_dir: Path) -> None:
    adapter = train_adapter(run)
    trained = run(method="dpo", adapter=adapter, reference="base", validate=True, learningRate=1e-3)
    expected = compute_dpo_loss_of_base_reference(model_dir, Path(adapter))
    assert trained.metrics["baseEvalLoss"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - STARTS["dpo"]) > 0.05


def compute_dpo_loss_of_base_reference(model_dir: Path, adapter: Path) -> float:
    """Return the mean loss of the rows for the adapter as policy and the base model as reference, with `beta` 0.1."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter).eval()

    def score(prompt: list[int], answer: list[int]) -> float:
        tokens = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            log_probabilities = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(log_probabilities.gather(1, tokens[0, len(prompt) :, None]).sum())

    losses = []
    for prompt, *answers in zip(*ROWS_BY_METHOD["dpo"].values(), strict=True):
        chosen, rejected = (score(prompt, answer) for answer in answers)
        with model.disable_adapter():
            base_chosen, base_rejected = (score(prompt, answer) for answer in answers)
        losses.append(math.log1p(math.exp(-0.1 * (chosen - base_chosen - rejected + base_rejected))))
    return mean(losses)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_resume_from_adapter_keeps_reference(run: RunTraining, method: str) -> None:
    shape = {"method": method, "adapter": train_adapter(run), "validate": True, "maxSteps": 6, "learningRate": 1e-3}
    whole = run(**shape, earlyStopping={"patience": 1000}, evalSteps=1, save_at=3)
    checkpoint = whole.folder / "trainer" / "checkpoint-3"
    assert not [path for path in checkpoint.iterdir() if path.is_dir()]
    resumed = run(**shape, earlyStopping={"patience": 1000}, evalSteps=1, resume=str(checkpoint))
    assert whole.metrics["baseEvalLoss"] == pytest.approx(STARTS[method], abs=1e-6)
    assert resumed.losses == whole.losses[3:]
    assert resumed.metrics["evalLoss"] == whole.metrics["evalLoss"]
    assert all((weight == resumed.weights[name]).all() for name, weight in whole.weights.items())


def test_cross_validation_folds_keep_reference(run: RunTraining) -> None:
    shape = {"method": "dpo", "adapter": train_adapter(run), "learningRate": 1e-3, "maxSteps": 4}
    validated, plain = run(**shape, crossValidation={"folds": 2}), run(**shape)
    assert validated.losses[0] == validated.losses[4] == pytest.approx(STARTS["dpo"], abs=1e-6)
    assert validated.losses[-4:] == plain.losses
    assert_single_adapter(validated)
