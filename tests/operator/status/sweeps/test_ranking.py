"""The ranking of the configurations of a sweep."""

from __future__ import annotations

import statistics

import pytest
from tests.support.operator.sweeps import DIGEST

from finetune_operator.api.sweep import TrialStatus
from finetune_operator.status.sweeps.ranking import build_best, is_lower_better, rank_configurations
from finetune_trainer.contract import Configuration


def _build_row(number: int, configuration: int, value: float | None, phase: str = "Complete") -> TrialStatus:
    return TrialStatus(
        name=f"lr-{number}",
        configuration=configuration,
        parameters=Configuration(learning_rate=1e-4),
        seed=42,
        created=True,
        phase=phase,
        value=value,
        adapter_uri="s3://b/a",
        digest=DIGEST,
    )


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("evalLoss", True), ("crossValidationLoss", True), ("perplexity", True), ("generalPerplexity", True),
        ("crossValidationDeviation", True), ("biasFlags", True), ("accuracy", False), ("rougeL", False),
    ],
)  # fmt: skip
def test_is_lower_better_each_metric_has_its_direction(metric: str, lower: bool) -> None:
    assert is_lower_better(metric) is lower


def test_rank_configurations_orders_by_direction_and_ties_by_number() -> None:
    rows = [_build_row(1, 1, 2.0), _build_row(2, 2, 1.0), _build_row(3, 3, 1.0), _build_row(4, 4, 3.0)]
    assert [ranked.number for ranked in rank_configurations(rows, "evalLoss")] == [2, 3, 1, 4]
    assert [ranked.number for ranked in rank_configurations(rows, "accuracy")] == [4, 1, 2, 3]


def test_rank_configurations_uses_complete_trials_with_a_value_alone() -> None:
    rows = [_build_row(1, 1, None), _build_row(2, 2, 0.1, "Failed"), _build_row(3, 3, 1.0)]
    assert [ranked.number for ranked in rank_configurations(rows, "evalLoss")] == [3]


def test_build_best_of_several_seeds_has_mean_deviation_and_first_complete_trial() -> None:
    rows = [
        _build_row(1, 1, None, "Failed"), _build_row(2, 2, 1.0), _build_row(3, 1, 0.5), _build_row(4, 2, 1.2),
        _build_row(5, 1, 0.9), _build_row(6, 2, 1.1),
    ]  # fmt: skip
    best = build_best(rank_configurations(rows, "evalLoss"))
    assert (best.name, best.configuration, best.runner_up) == ("lr-3", 1, "lr-2")
    assert best.value == pytest.approx(0.7)
    assert best.deviation == pytest.approx(statistics.stdev([0.5, 0.9]))
    alone = build_best(rank_configurations(rows[:2], "evalLoss"))
    assert (alone.deviation, alone.runner_up) == (None, None)
