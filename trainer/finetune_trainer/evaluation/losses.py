"""Loss and perplexity of both models from each row's total loss and number of learnt tokens, and losses of folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from finetune_trainer.evaluation.intervals import resampled, weighted_mean
from finetune_trainer.records.evaluation import CrossValidation, Estimate, Measure

if TYPE_CHECKING:
    from finetune_trainer.evaluation.intervals import Rows


def eval_loss(tokens: Sequence[int], base: Sequence[float], tuned: Sequence[float]) -> Measure:
    """`evalLoss` in nats per token, from each row's summed loss in nats under both models."""
    before, after = weighted_mean(base, tokens), weighted_mean(tuned, tokens)
    change = weighted_mean([b - a for a, b in zip(base, tuned, strict=True)], tokens)
    return Measure(name="evalLoss", higher_is_better=False, base=before, tuned=after, change=change)


def perplexity(tokens: Sequence[int], base: Sequence[float], tuned: Sequence[float]) -> Measure:
    """`perplexity`, from the same. Raises `OverflowError` where a loss, of a resample too, is too high for it."""
    import numpy as np

    # A change of exponentials is no function of the change of losses, so it is resampled itself.
    weights, before, after = np.asarray(tokens, float), np.asarray(base, float), np.asarray(tuned, float)

    def per_token(losses: np.typing.NDArray[np.float64], rows: Rows) -> float:
        return _exp(losses[rows].sum() / weights[rows].sum())

    return Measure(
        name="perplexity",
        higher_is_better=False,
        base=_exponential(weighted_mean(base, tokens)),
        tuned=_exponential(weighted_mean(tuned, tokens)),
        change=resampled(lambda rows: per_token(after, rows) - per_token(before, rows), len(tokens)),
    )


def cross_validated(folds: Sequence[float]) -> CrossValidation | None:
    """What the losses of the folds, of which there are two or more, come to; `None` if there was none."""
    if not folds:
        return None
    return CrossValidation(metric="evalLoss", folds=list(folds), mean=fmean(folds), deviation=stdev(folds))


def fold_measures(found: CrossValidation | None) -> list[Measure]:
    """For the gate alone: `crossValidationLoss` is no measure of the adapter that is published."""
    if found is None:
        return []
    mean = Estimate(value=found.mean, samples=len(found.folds))
    return [Measure(name="crossValidationLoss", higher_is_better=False, tuned=mean)]


def _exponential(loss: Estimate) -> Estimate:
    if loss.low is None or loss.high is None:
        return Estimate(value=_exp(loss.value), samples=loss.samples)
    return Estimate(value=_exp(loss.value), low=_exp(loss.low), high=_exp(loss.high), samples=loss.samples)


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError as error:
        raise OverflowError(f"a loss of {loss:.4g} nats per token is too high for a perplexity") from error
