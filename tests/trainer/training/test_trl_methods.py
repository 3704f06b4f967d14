"""Tests of the training methods with both backends: the learned weights and the validation metrics."""

from __future__ import annotations

import math

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import CHOSEN_ANSWERS, PROMPTS, REJECTED_ANSWERS, ROWS_BY_METHOD, RunTraining

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

BACKENDS = ["transformers", "unsloth"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dpo_prefers_the_chosen_answer(run: RunTraining, backend: str) -> None:
    trained = run(method="dpo", maxSteps=8, validate=True, backend=backend)
    assert trained.losses[0] == pytest.approx(math.log(2), abs=1e-4)  # at first it is the base model
    assert trained.metrics["evalLoss"] < 0.5 * trained.metrics["baseEvalLoss"]
    assert trained.metrics["evalRewardAccuracy"] == 1.0


@pytest.mark.parametrize("batch", [3, 8])
def test_dpo_reward_accuracy_is_per_row(run: RunTraining, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    # The last two rows contradict the first two, so that two are wrong. The last batch is smaller.
    prompts, good, bad = (
        [*answers[:6], *other[:2]]
        for answers, other in (
            (PROMPTS, PROMPTS),
            (CHOSEN_ANSWERS, REJECTED_ANSWERS),
            (REJECTED_ANSWERS, CHOSEN_ANSWERS),
        )
    )
    monkeypatch.setitem(ROWS_BY_METHOD, "dpo", {"prompt_ids": prompts, "chosen_ids": good, "rejected_ids": bad})
    trained = run(method="dpo", maxSteps=8, validate=True, batchSize=batch)
    assert trained.metrics["evalRewardAccuracy"] == pytest.approx(6 / 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kto_learns_desirable_answers(run: RunTraining, backend: str) -> None:
    trained = run(method="kto", maxSteps=12, validate=True, backend=backend)
    assert trained.metrics["baseEvalLoss"] == pytest.approx(0.5, abs=1e-4)
    assert trained.metrics["evalLoss"] < 0.9 * trained.metrics["baseEvalLoss"]
    assert trained.metrics["tokens"] > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preference_methods_export_single_adapter(run: RunTraining, method: str, backend: str) -> None:
    trained = run(method=method, maxSteps=2, backend=backend)
    assert not [path for path in (trained.folder / "adapter").iterdir() if path.is_dir()]


def test_validation_loss_is_token_mean_without_side_effects(run: RunTraining) -> None:
    shape = {"lora": {"dropout": 0.2}, "evalSteps": 2}
    watched, alone = run(validate=True, **shape), run(**shape)
    assert watched.losses == alone.losses
    assert watched.metrics["evalLoss"] < watched.metrics["baseEvalLoss"]
    by_row = run(validate=True, **{**shape, "batchSize": 1})
    assert by_row.metrics["baseEvalLoss"] == pytest.approx(watched.metrics["baseEvalLoss"], abs=1e-5)
    assert watched.progress[-1].eval_loss == watched.metrics["evalLoss"]


def test_kto_validation_is_independent_of_batch_size(run: RunTraining) -> None:
    trained = run(method="kto", maxSteps=6)
    start = {"adapter": str(trained.folder / "adapter"), "method": "kto", "maxSteps": 1, "validate": True}
    start["reference"] = "base"
    losses = [run(**start, batchSize=size).metrics["baseEvalLoss"] for size in (2, 3, 8)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert losses[0] != pytest.approx(0.5, abs=1e-3)
