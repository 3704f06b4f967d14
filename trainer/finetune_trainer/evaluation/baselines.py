"""Comparison of the tuned model with the adapters of `evaluation.baselines`, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.evaluation.answers import TUNED
from finetune_trainer.evaluation.losses import measure_eval_loss, measure_perplexity
from finetune_trainer.evaluation.row_scores import ValidationLosses
from finetune_trainer.records.evaluation import Comparison, Measure


def compare_eval_loss(losses: ValidationLosses, baseline: str) -> Measure:
    """Return `evalLoss` with the baseline in the place of the base model."""
    return measure_eval_loss(losses.token_counts, losses.sums[baseline], losses.sums[TUNED])


def compare_perplexity(losses: ValidationLosses, baseline: str) -> Measure:
    """Return `perplexity` with the baseline in the place of the base model. Raises as `measure_perplexity`."""
    return measure_perplexity(losses.token_counts, losses.sums[baseline], losses.sums[TUNED])


def add_comparisons(measures: Sequence[Measure], baseline: str, compared: Sequence[Measure]) -> list[Measure]:
    """Return the measures with the comparison of each one that is in `compared`, where the baseline is the `base`."""
    comparisons = {
        measure.name: Comparison(estimate=measure.base, change=measure.change, p_value=measure.p_value)
        for measure in compared
        if measure.base
    }
    return [
        measure.model_copy(update={"baselines": {**measure.baselines, baseline: comparisons[measure.name]}})
        if measure.name in comparisons
        else measure
        for measure in measures
    ]
