"""Rules that a FineTuneSchedule and a FineTuneSweep share."""

from __future__ import annotations

import pytest

from finetune_operator.api.schedule import PromotionRule
from finetune_operator.api.sweep import Objective
from finetune_trainer.config.loader import find_broken_rules


@pytest.mark.parametrize("rule", [Objective, PromotionRule])
@pytest.mark.parametrize(("metric", "is_refused"), [("testLoss", True), ("testAccuracy", True), ("evalLoss", False)])
def test_metric_of_test_data_does_not_choose_a_model(
    rule: type[Objective | PromotionRule], metric: str, is_refused: bool
) -> None:
    messages = [message for _, message in find_broken_rules(rule(metric=metric))]
    assert bool(messages) == is_refused
    assert all(message.startswith("metric must be one of the validation data") for message in messages)
