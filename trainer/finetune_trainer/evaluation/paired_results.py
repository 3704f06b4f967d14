"""Compares the published results of two runs on the validation rows that both have evaluated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from pydantic import ConfigDict, Field

from finetune_trainer.contract import MetricChange, Model, is_grader_name
from finetune_trainer.evaluation.exact_tests import compute_sign_flip_p_value
from finetune_trainer.evaluation.intervals import MIN_SAMPLES, estimate_paired_change
from finetune_trainer.evaluation.losses import measure_eval_loss, measure_perplexity
from finetune_trainer.evaluation.paired_measures import measure_scores, measure_share
from finetune_trainer.records.evaluation import Estimate, Measure

_TUNED = "tuned"


class NotComparable(Exception):
    """Two results cannot be compared. The message says why, as the rest of a sentence."""


class EvaluatedRow(NamedTuple):
    """The tuned model's result on one validation row."""

    digest: str
    """Digest of the row's turns, which is the same in all runs."""
    scores: dict[str, float]
    """Scores by name. They may be NaN."""
    reference: str
    answer: str


class RowPair(NamedTuple):
    """The results of two runs on the same row."""

    baseline: EvaluatedRow
    tuned: EvaluatedRow


class _LenientModel(Model):
    """Base class that ignores unknown fields, because a newer trainer may have written the row."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)


class _Answer(_LenientModel):
    text: str = ""


class _RowRecord(_LenientModel):
    """The fields of `RowScores` that a comparison needs."""

    row: str
    reference: str = ""
    answers: dict[str, _Answer] = Field(default={})
    scores: dict[str, dict[str, float | None]]


def parse_row(line: bytes) -> EvaluatedRow:
    """Parse a line of `evaluation.jsonl`. Raises `ValueError` if it is none."""
    record = _RowRecord.model_validate_json(line)
    scores = {name: math.nan if value is None else value for name, value in record.scores.get(_TUNED, {}).items()}
    return EvaluatedRow(record.row, scores, record.reference, record.answers.get(_TUNED, _Answer()).text)


def pair_rows(baseline: Sequence[EvaluatedRow], tuned: Sequence[EvaluatedRow]) -> list[RowPair]:
    """Return the rows that both runs have evaluated. A row that occurs several times is paired as often as in both."""
    baseline_rows = _number_rows(baseline)
    return [RowPair(baseline_rows[key], row) for key, row in _number_rows(tuned).items() if key in baseline_rows]


def _number_rows(rows: Sequence[EvaluatedRow]) -> dict[tuple[str, int], EvaluatedRow]:
    counts: Counter[str] = Counter()
    numbered = {}
    for row in rows:
        numbered[row.digest, counts[row.digest]] = row
        counts[row.digest] += 1
    return numbered


def compare_rows(metric: str, pairs: Sequence[RowPair]) -> MetricChange:
    """Return the change of a metric from the baseline to the tuned result, with the statistics of a run's own report.

    Raises `NotComparable`.
    """
    measure_pairs = _MEASURES.get(metric) or (_measure_grades if is_grader_name(metric) else None)
    if measure_pairs is None:
        raise NotComparable(f"the scores of single rows do not give {metric}, which is measured on all rows together")
    try:
        measure = measure_pairs(metric, pairs)
    except OverflowError as error:
        raise NotComparable(f"the losses of the rows are too high ({error})") from error
    return _build_change(measure)


def _build_change(measure: Measure) -> MetricChange:
    if measure.base is None or measure.change is None:
        raise NotComparable(f"{measure.name} was measured on one of the results alone")
    return MetricChange(
        metric=measure.name,
        higher_is_better=measure.higher_is_better,
        baseline=measure.base.value,
        value=measure.tuned.value,
        change=measure.change.value,
        low=measure.change.low,
        high=measure.change.high,
        p_value=measure.p_value,
        samples=measure.change.samples,
    )


def _measure_eval_loss(_: str, pairs: Sequence[RowPair]) -> Measure:
    return measure_eval_loss(*_get_losses(pairs))


def _measure_perplexity(_: str, pairs: Sequence[RowPair]) -> Measure:
    return measure_perplexity(*_get_losses(pairs))


def _measure_share(metric: str, pairs: Sequence[RowPair]) -> Measure:
    baseline, tuned = _get_scores(pairs, metric)
    return measure_share(metric, [value == 1 for value in baseline], [value == 1 for value in tuned])


def _measure_scores(metric: str, pairs: Sequence[RowPair]) -> Measure:
    """Return the mean of the scores of the rows."""
    baseline, tuned = _get_scores(pairs, metric)
    changes = [after - before for before, after in zip(baseline, tuned, strict=True)]
    return Measure(
        name=metric,
        higher_is_better=True,
        base=Estimate(value=fmean(baseline), samples=len(changes)),
        tuned=Estimate(value=fmean(tuned), samples=len(changes)),
        change=estimate_paired_change(baseline, tuned),
        p_value=compute_sign_flip_p_value(changes) if len(changes) < MIN_SAMPLES else None,
    )


def _measure_grades(metric: str, pairs: Sequence[RowPair]) -> Measure:
    """Return the mean of the scores of a grader over the rows that both have a score for."""
    return measure_scores(metric, *_get_scores(pairs, metric))


def _measure_macro_f1(_: str, pairs: Sequence[RowPair]) -> Measure:
    from finetune_trainer.evaluation.classification import measure_classification  # imports regex

    answered = _select_rows(pairs, "accuracy")
    references = [pair.tuned.reference for pair in answered]
    baseline, tuned = ([row.answer for row in rows] for rows in zip(*answered, strict=True))
    measures = measure_classification(references, baseline, tuned)[0]
    return next(measure for measure in measures if measure.name == "macroF1")


_MEASURES: dict[str, Callable[[str, Sequence[RowPair]], Measure]] = {
    "evalLoss": _measure_eval_loss,
    "perplexity": _measure_perplexity,
    "accuracy": _measure_share,
    "exactMatch": _measure_share,
    "macroF1": _measure_macro_f1,
    "rouge1": _measure_scores,
    "rouge2": _measure_scores,
    "rougeL": _measure_scores,
    "chrf": _measure_scores,
}
"""How each metric is measured. BLEU of single sentences is too different from that of all rows to stand for it."""


def _select_rows(pairs: Sequence[RowPair], name: str) -> list[RowPair]:
    selected = [pair for pair in pairs if name in pair.baseline.scores and name in pair.tuned.scores]
    if not selected:
        raise NotComparable(f"they have no common rows with {name}")
    return selected


def _get_scores(pairs: Sequence[RowPair], name: str) -> tuple[list[float], list[float]]:
    selected = _select_rows(pairs, name)
    baseline, tuned = ([row.scores[name] for row in rows] for rows in zip(*selected, strict=True))
    if not all(map(math.isfinite, (*baseline, *tuned))):
        raise NotComparable(f"{name} of a row is not finite")
    return baseline, tuned


def _get_losses(pairs: Sequence[RowPair]) -> tuple[list[int], list[float], list[float]]:
    """Return tokens, and the summed loss in nats of the baseline and of the tuned result, of each row."""
    counted = _select_rows(pairs, "lossTokens")
    baseline, tuned = _get_scores(counted, "lossSum")
    token_counts, tuned_counts = _get_scores(counted, "lossTokens")
    if token_counts != tuned_counts:
        raise NotComparable("they count different tokens in the loss of the same rows")
    if not any(token_counts):
        raise NotComparable("no token of the common rows counts in the loss")
    return list(map(int, token_counts)), baseline, tuned
