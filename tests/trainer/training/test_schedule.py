"""Tests of the learning rate of each step, compared with the schedules of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config
from tests.support.trainer.tiny_training import RecordingReporter, RunTraining

from finetune_trainer.training.schedule import Schedule, build_schedule, count_warmup_steps

PEAK = 1e-3
RUNS = [(1, 0), (2, 1), (5, 0), (7, 2), (40, 3), (40, 39), (101, 20)]
"""All steps and those of the warm-up."""


def list_rates(schedule: Schedule) -> list[float]:
    return [schedule.compute_factor(step) for step in range(schedule.steps)]


def list_transformers_rates(name: str, steps: int, warmup_steps: int, **settings: Any) -> list[float]:
    """Return the rates that transformers computes for a peak of 1."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, optimizer, warmup_steps, steps, settings)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize(("steps", "warmup_steps"), RUNS)
def test_schedule_without_floor_is_that_of_transformers(steps: int, warmup_steps: int) -> None:
    expected = {
        "linear": list_transformers_rates("linear", steps, warmup_steps),
        "cosine": list_transformers_rates("cosine", steps, warmup_steps),
    }
    decay_steps = min(-(-steps // 5), steps - warmup_steps)
    expected["warmupStableDecay"] = list_transformers_rates(
        "warmup_stable_decay", steps, warmup_steps, num_decay_steps=decay_steps, decay_type="linear"
    )
    for shape, rates in expected.items():
        assert list_rates(Schedule(shape, warmup_steps, steps, 0)) == pytest.approx(rates, abs=1e-12), shape


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize(("steps", "warmup_steps"), [run for run in RUNS if run[0] - run[1] > 1])
def test_schedule_with_floor_reaches_it_at_last_step(steps: int, warmup_steps: int) -> None:
    cosine = list_transformers_rates("cosine_with_min_lr", steps - 1, warmup_steps, min_lr_rate=0.25)
    assert list_rates(Schedule("cosine", warmup_steps, steps, 0.25)) == pytest.approx([*cosine, 0.25], abs=1e-12)
    linear = list_transformers_rates("linear", steps - 1, warmup_steps)
    above_floor = [0.25 + 0.75 * rate for rate in linear[warmup_steps:]]
    expected = [*linear[:warmup_steps], *above_floor, 0.25]
    assert list_rates(Schedule("linear", warmup_steps, steps, 0.25)) == pytest.approx(expected, abs=1e-12)


def test_schedule_stable_decay_decreases_in_last_fifth() -> None:
    rates = list_rates(Schedule("warmupStableDecay", warmup_steps=2, steps=10, floor=0.5))
    assert rates == [0, 0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5]


@pytest.mark.parametrize("shape", ["linear", "cosine", "warmupStableDecay"])
def test_schedule_single_step_has_peak_rate(shape: str) -> None:
    assert list_rates(Schedule(shape, warmup_steps=0, steps=1, floor=0.25)) == [1]


@pytest.mark.parametrize("shape", ["linear", "cosine", "warmupStableDecay"])
def test_schedule_warmup_over_all_steps_ends_at_peak(shape: str) -> None:
    training = config({"scheduler": shape, "minLearningRateRatio": 0.25, "warmupSteps": 9}).training
    schedule = build_schedule(training, steps=5)
    assert schedule
    assert list_rates(schedule) == [0, 0.25, 0.5, 0.75, 1]
    assert schedule.compute_factor(5) == 0.25, "transformers computes one more rate than there are steps"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 3), ({"warmupRatio": 0}, 0), ({"warmupSteps": 0}, 0), ({"warmupSteps": 7}, 7), ({"warmupSteps": 500}, 99)],
    ids=["default", "no ratio", "no steps", "steps", "too many"],
)
def test_warmup_steps_follow_settings(settings: dict[str, Any], expected: int) -> None:
    assert count_warmup_steps(config(settings).training, 100) == expected


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scheduler": "linear", "warmupSteps": 1}, [0, 1, 2 / 3, 1 / 3]),
        ({"scheduler": "linear", "minLearningRateRatio": 0.25, "warmupSteps": 1}, [0, 1, 0.625, 0.25]),
        ({"scheduler": "warmupStableDecay", "minLearningRateRatio": 0.25, "warmupSteps": 0}, [1, 1, 1, 0.25]),
    ],
    ids=["linear", "floor", "stable"],
)
def test_training_uses_rates_of_schedule(run: RunTraining, settings: dict[str, Any], expected: Sequence[float]) -> None:
    progress = RecordingReporter()
    run(maxSteps=4, learningRate=PEAK, progress=progress, **settings)
    reported = [metrics["learningRate"] for _, metrics in progress.tracked_metrics if "learningRate" in metrics]
    assert reported == pytest.approx([PEAK * factor for factor in expected], abs=1e-12)
