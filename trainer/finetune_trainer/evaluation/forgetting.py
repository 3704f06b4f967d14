"""Judges catastrophic forgetting from the perplexity of general text."""

from __future__ import annotations

from finetune_trainer.evaluation import messages
from finetune_trainer.evaluation.decisions import change_direction
from finetune_trainer.records.evaluation import ForgettingResult, Measure

RELEVANT_RISE = 0.1
"""Rise of the perplexity of general text, relative to the base model. A smaller one is no reason for a warning."""


def judge_forgetting(measure: Measure) -> ForgettingResult:
    """Return the verdict on `generalPerplexity`: forgetting is a rise by a relevant amount and by more than chance."""
    if measure.base is None or measure.change is None:
        return ForgettingResult(verdict="unknown", message="Forgetting was not measured.", measure=measure)
    is_forgetting = change_direction(measure) == "worse" and measure.change.value >= RELEVANT_RISE * measure.base.value
    return ForgettingResult(
        verdict="forgetting" if is_forgetting else "none",
        message=messages.describe_forgetting(measure.base, measure.tuned, is_forgetting=is_forgetting),
        measure=measure,
    )
