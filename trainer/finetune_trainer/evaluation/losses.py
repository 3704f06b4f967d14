"""Computes loss and perplexity of both models from the summed loss and supervised tokens of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_trainer.evaluation.exact_tests import compute_sign_flip_p_value
from finetune_trainer.evaluation.intervals import MIN_SAMPLES, bootstrap, estimate_weighted_mean
from finetune_trainer.records.evaluation import CrossValidationResult, Estimate, Measure

if TYPE_CHECKING:
    from finetune_trainer.evaluation.intervals import RowIndices


def measure_eval_loss(token_counts: Sequence[int], base: Sequence[float], tuned: Sequence[float]) -> Measure:
    """Return `evalLoss` in nats per token, from the summed loss of each row in nats under both models."""
    base_estimate, tuned_estimate = (
        estimate_weighted_mean(base, token_counts),
        estimate_weighted_mean(tuned, token_counts),
    )
    changes = _subtract(tuned, base)
    return Measure(
        name="evalLoss",
        higher_is_better=False,
        base=base_estimate,
        tuned=tuned_estimate,
        change=estimate_weighted_mean(changes, token_counts),
        p_value=compute_loss_p_value(changes),
    )


def compute_loss_p_value(changes: Sequence[float]) -> float | None:
    """Return the p-value of a change of the loss per token, from the change of the summed loss of each row. There is
    none if there are enough rows for an interval.

    The rows have the same number of tokens under both models, so exchanging the models flips the sign of the change.
    """
    return compute_sign_flip_p_value(changes) if len(changes) < MIN_SAMPLES else None


def _subtract(tuned: Sequence[float], base: Sequence[float]) -> list[float]:
    return [tuned_sum - base_sum for base_sum, tuned_sum in zip(base, tuned, strict=True)]


def measure_perplexity(token_counts: Sequence[int], base: Sequence[float], tuned: Sequence[float]) -> Measure:
    """Return `perplexity`. Raises `OverflowError` if the loss of the rows, or of a resample, is too high for it."""
    import numpy as np

    # The change of a perplexity is not a function of the change of the loss, so it has a bootstrap of its own.
    weights, base_sums, tuned_sums = np.asarray(token_counts, float), np.asarray(base, float), np.asarray(tuned, float)

    def compute_perplexity(losses: np.typing.NDArray[np.float64], rows: RowIndices) -> float:
        return _exponentiate(losses[rows].sum() / weights[rows].sum())

    return Measure(
        name="perplexity",
        higher_is_better=False,
        base=_exponentiate_estimate(estimate_weighted_mean(base, token_counts)),
        tuned=_exponentiate_estimate(estimate_weighted_mean(tuned, token_counts)),
        change=bootstrap(
            lambda rows: compute_perplexity(tuned_sums, rows) - compute_perplexity(base_sums, rows), len(token_counts)
        ),
        # The perplexities of both models have the same product whatever rows are exchanged, so their difference grows
        # with that of the losses: the test of the loss is that of the perplexity.
        p_value=compute_loss_p_value(_subtract(tuned, base)),
    )


def build_fold_measures(cross_validation: CrossValidationResult | None) -> list[Measure]:
    """Return `crossValidationLoss` for the gate. It is not in the report: it does not measure the published adapter."""
    if cross_validation is None:
        return []
    mean = Estimate(value=cross_validation.mean, samples=len(cross_validation.folds))
    return [Measure(name="crossValidationLoss", higher_is_better=False, tuned=mean)]


def _exponentiate_estimate(loss: Estimate) -> Estimate:
    if loss.low is None or loss.high is None:
        return Estimate(value=_exponentiate(loss.value), samples=loss.samples)
    return Estimate(
        value=_exponentiate(loss.value),
        low=_exponentiate(loss.low),
        high=_exponentiate(loss.high),
        samples=loss.samples,
    )


def _exponentiate(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError as error:
        raise OverflowError(f"a loss of {loss:.4g} nats per token is too high for a perplexity") from error
