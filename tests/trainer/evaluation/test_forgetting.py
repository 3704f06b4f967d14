"""Tests of the conditions under which catastrophic forgetting is reported."""

from __future__ import annotations

import pytest

from finetune_trainer.evaluation.forgetting import judge_forgetting
from finetune_trainer.evaluation.losses import measure_perplexity
from finetune_trainer.records.evaluation import Estimate, Measure


def make_perplexity(base: float, tuned: float, margin: float | None) -> Measure:
    change = Estimate(value=tuned - base, samples=24)
    if margin is not None:
        change = Estimate(value=tuned - base, low=tuned - base - margin, high=tuned - base + margin, samples=24)
    return Measure(
        name="generalPerplexity",
        higher_is_better=False,
        base=Estimate(value=base, samples=24),
        tuned=Estimate(value=tuned, samples=24),
        change=change,
    )


CASES = {
    "large and clear": (make_perplexity(57, 127, 20), "forgetting"),
    "clear, but too little to matter": (make_perplexity(57.19, 59.53, 1), "none"),
    "just below the floor": (make_perplexity(50, 54.9, 1), "none"),
    "at the floor": (make_perplexity(50, 55, 1), "forgetting"),
    "large, but perhaps chance": (make_perplexity(57, 127, 80), "none"),
    "easier": (make_perplexity(57, 20, 5), "none"),
}


@pytest.mark.parametrize(("measure", "verdict"), CASES.values(), ids=CASES)
def test_forgetting_is_a_relevant_and_significant_rise(measure: Measure, verdict: str) -> None:
    result = judge_forgetting(measure)
    assert (result.verdict, result.measure) == (verdict, measure)


def test_forgetting_without_base_model_is_unknown() -> None:
    measure = make_perplexity(57, 127, 20).model_copy(update={"base": None, "change": None})
    assert judge_forgetting(measure).verdict == "unknown"


def test_forgetting_of_few_texts_is_decided_by_exact_test() -> None:
    tokens, base = [100] * 8, [400.0 + row for row in range(8)]
    risen = judge_forgetting(measure_perplexity(tokens, base, [loss + 30 for loss in base]))
    mixed = [loss + (90 if row == 0 else -1) for row, loss in enumerate(base)]
    assert risen.verdict == "forgetting"
    assert judge_forgetting(measure_perplexity(tokens, base, mixed)).verdict == "none"


def test_forgetting_message_has_numbers_and_no_advice() -> None:
    message = judge_forgetting(make_perplexity(57, 127, 20)).message
    assert message.startswith("Perplexity of general text rose from 57 to 127: the model forgot general knowledge")
    assert "training." not in message
