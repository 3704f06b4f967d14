"""Tests of training a tiny model: the learned weights, the reported progress, and the stop conditions."""

from __future__ import annotations

import json
import math
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, chat, config
from tests.support.trainer.tiny_training import RecordingReporter, RunTraining

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.steps import count_optimizer_steps

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

MORE_CHATS = [chat(f"What is {number}?", f"It is {'very ' * (number % 5)}{number}.") for number in range(16)]
CHATS = MORE_CHATS[:10]


def test_training_uses_all_reported_tokens_each_epoch(run: RunTraining) -> None:
    long = chat("x " * 40, "y " * 30)  # longer than the default limits of TRL, which do not truncate it
    trained = run(rows=[*CHATS, long], maxSteps=None, epochs=2, batchSize=2, gradientAccumulation=2)
    assert trained.metrics["tokens"] == 2 * trained.report.tokens
    assert trained.metrics["supervisedTokens"] == 2 * trained.report.supervised_tokens
    assert trained.metrics["steps"] == 6


def test_training_reports_each_step(run: RunTraining) -> None:
    trained = run(maxSteps=5)
    steps = [report for report in trained.progress if report.step]
    assert [report.step for report in steps] == [1, 2, 3, 4, 5]
    assert [report.percentage for report in steps] == [20, 40, 60, 80, 99]
    assert all(report.tokens_per_second for report in steps)
    assert trained.losses[-1] == trained.metrics["finalLoss"]
    assert trained.metrics["trainLoss"] == pytest.approx(sum(trained.losses) / 5)
    assert not list((trained.folder / "trainer").rglob("*"))  # no files of TRL remain


def test_training_lowers_loss(run: RunTraining) -> None:
    trained = run(rows=CHATS, maxSteps=30, batchSize=10, gradientAccumulation=1)
    assert trained.metrics["finalLoss"] < 0.8 * trained.losses[0]


def test_training_changes_adapter_only(run: RunTraining, model_dir: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(model_dir / "model.safetensors")
    trained = run(maxSteps=3)
    for name, before in base.items():
        stem, _, last = name.removeprefix("model.").rpartition(".")
        weights = trained.model.named_parameters()
        after = [weight for n, weight in weights if f"{stem}.base_layer.{last}" in n or n.endswith(name)]
        assert after, name
        assert all((before == weight).all() for weight in after), name
    assert all(weight.any() for name, weight in trained.weights.items() if "lora_B" in name)


def test_training_seed_determines_adapter(run: RunTraining) -> None:
    first, second, other = (run(lora={"dropout": 0.1}, seed=seed) for seed in (7, 7, 8))
    assert first.losses == second.losses != other.losses
    assert all((first.weights[name] == second.weights[name]).all() for name in first.weights)


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
@pytest.mark.parametrize(
    "settings",
    [
        {"lora": {"dropout": 0.1}},
        {"method": "dpo", "optimizer": "adamw8bit", "lora": {"rank": 96}},
        {"method": "kto", "scheduler": "warmupStableDecay", "minLearningRateRatio": 0.1},
        {"rows": CHATS, "packing": True},
        {"rows": MORE_CHATS, "batching": "byLength"},  # the checkpoint is in the middle of an epoch
    ],
    ids=["sft", "dpo, 8 bits", "kto, floor", "packed", "byLength"],
)
def test_training_resume_matches_uninterrupted(run: RunTraining, backend: str, settings: dict[str, Any]) -> None:
    shape = {"backend": backend, "maxSteps": 6, "gradientAccumulation": 2, "validate": True, **settings}
    whole = run(save_at=3, **shape)
    rest = run(resume=str(whole.folder / "trainer" / "checkpoint-3"), **shape)
    assert rest.losses == whole.losses[3:]
    assert all((rest.weights[name] == whole.weights[name]).all() for name in whole.weights)
    for name in ("tokens", "supervisedTokens", "trainLoss", "baseEvalLoss", "evalLoss"):
        assert rest.metrics.get(name) == whole.metrics.get(name)
    assert next(report.step for report in rest.progress if report.step) == 3


def test_training_seconds_include_earlier_attempts(run: RunTraining) -> None:
    whole = run(save_at=2)
    checkpoint = whole.folder / "trainer" / "checkpoint-2"
    counts = json.loads((checkpoint / "counts.json").read_text())
    assert 0 < counts["seconds"] < whole.metrics["trainSeconds"]
    (checkpoint / "counts.json").write_text(json.dumps(counts | {"seconds": 1000}))
    rest = run(resume=str(checkpoint)).metrics
    assert 1000 < rest["trainSeconds"] < 1000 + TRAINING_TIMEOUT
    assert rest["tokensPerSecond"] == pytest.approx(rest["tokens"] / rest["trainSeconds"], abs=0.1)


@pytest.mark.parametrize("loss", ["completion", "all"])
def test_training_accumulation_split_does_not_change_result(run: RunTraining, loss: str) -> None:
    # Rows with from 7 to 35 learned tokens: a mean of batches' means would differ.
    shape = {"rows": MORE_CHATS, "loss": loss, "gradientCheckpointing": False, "maxSteps": 6}
    whole, *others = (run(batchSize=8 // parts, gradientAccumulation=parts, **shape) for parts in (1, 2, 8))
    for other in others:
        assert other.losses == pytest.approx(whole.losses, abs=1e-5)
        assert max(float((other.weights[name] - whole.weights[name]).abs().max()) for name in whole.weights) < 5e-5


def test_training_gradient_checkpointing_does_not_change_losses(run: RunTraining) -> None:
    losses = [run(gradientCheckpointing=on).losses for on in (True, False)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_training_single_step_is_not_warmup(run: RunTraining, scheduler: str) -> None:
    trained = run(maxSteps=1, scheduler=scheduler, warmupRatio=0.5)
    assert any(weight.any() for name, weight in trained.weights.items() if "lora_B" in name)


def test_training_bf16_on_cpu_is_finite(run: RunTraining) -> None:
    assert math.isfinite(run(maxSteps=2, precision="bf16").metrics["finalLoss"])


def test_training_nan_loss_ends_run(run: RunTraining, model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model_dir, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    progress = RecordingReporter()
    with pytest.raises(TrainerError, match="up to step 3 of 9") as caught:
        run(maxSteps=9, base=broken, progress=progress)
    assert caught.value.reason is Reason.NON_FINITE_LOSS
    assert [report.loss for report in progress.reported if report.step] == [None] * 3  # no made-up number is shown


def test_training_single_nan_loss_is_excluded_from_mean(run: RunTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.training.methods import sft_trainer

    steps, step = count(1), sft_trainer.TokenizedSFTTrainer.training_step
    monkeypatch.setattr(
        sft_trainer.TokenizedSFTTrainer,
        "training_step",
        lambda *given: step(*given) * (math.nan if next(steps) == 2 else 1),
    )
    trained = run(maxSteps=4)
    assert len(trained.losses) == 3
    assert trained.metrics["trainLoss"] == pytest.approx(sum(trained.losses) / 3)
    assert all(math.isfinite(value) for value in trained.metrics.values()), "a manifest holds no other numbers"


@pytest.mark.parametrize(
    "shape",
    [
        {"epochs": 1, "batchSize": 3, "gradientAccumulation": 2},
        {"epochs": 2.5, "batchSize": 4, "gradientAccumulation": 1},
        {"epochs": 0.1, "batchSize": 8, "gradientAccumulation": 8},
    ],
)
def test_total_steps_match_training(run: RunTraining, shape: dict[str, Any]) -> None:
    training = config({"maxSteps": None, **shape}).training
    assert run(rows=CHATS, maxSteps=None, **shape).metrics["steps"] == count_optimizer_steps(training, len(CHATS))
