"""Comparison of two published results, row by row, with scipy and scikit-learn as oracles."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from finetune_trainer.evaluation.paired_results import (
    EvaluatedRow,
    NotComparable,
    RowPair,
    compare_rows,
    pair_rows,
    parse_row,
)
from finetune_trainer.records.evaluation import GeneratedAnswer, RowScores

if TYPE_CHECKING:
    Numbers = np.typing.NDArray[np.float64]

CONFIDENCE = 0.95


def make_rows(name: str, values: Sequence[float]) -> list[EvaluatedRow]:
    return [EvaluatedRow(f"sha256:{index}", {name: value}, "", "") for index, value in enumerate(values)]


def make_loss_rows(sums: Sequence[float], tokens: Sequence[int]) -> list[EvaluatedRow]:
    return [
        EvaluatedRow(f"sha256:{index}", {"lossSum": loss, "lossTokens": float(count)}, "", "")
        for index, (loss, count) in enumerate(zip(sums, tokens, strict=True))
    ]


def draw_losses(count: int, change: float) -> tuple[list[float], list[float], list[int]]:
    generator = random.Random(count)
    tokens = [generator.randint(5, 60) for _ in range(count)]
    baseline = [each * generator.uniform(0.8, 1.6) for each in tokens]
    tuned = [loss + each * generator.gauss(change, 0.1) for loss, each in zip(baseline, tokens, strict=True)]
    return baseline, tuned, tokens


def pair_losses(count: int, change: float) -> list[RowPair]:
    baseline, tuned, tokens = draw_losses(count, change)
    return pair_rows(make_loss_rows(baseline, tokens), make_loss_rows(tuned, tokens))


def test_compare_rows_eval_loss_has_the_interval_of_a_ratio_of_means() -> None:
    baseline, tuned, tokens = map(np.array, draw_losses(60, -0.02))
    found = compare_rows("evalLoss", pair_losses(60, -0.02))
    assert found.baseline == pytest.approx(baseline.sum() / tokens.sum())
    assert found.value == pytest.approx(tuned.sum() / tokens.sum())
    change = (tuned - baseline).sum() / tokens.sum()
    error = np.std(tuned - baseline - change * tokens, ddof=1) / tokens.mean() / math.sqrt(60)
    assert found.change == pytest.approx(change)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(CONFIDENCE, 59, loc=change, scale=error))
    assert (found.higher_is_better, found.samples, found.p_value) == (False, 60, None)


def test_compare_rows_few_losses_have_the_p_value_of_an_exact_test() -> None:
    baseline, tuned, _ = draw_losses(10, -0.08)
    found = compare_rows("evalLoss", pair_losses(10, -0.08))
    oracle = stats.permutation_test(
        (np.array(tuned), np.array(baseline)),
        lambda after, before, axis: np.sum(after - before, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert (found.low, found.high) == (None, None)
    assert found.p_value == pytest.approx(oracle.pvalue)


def test_compare_rows_perplexity_has_the_interval_of_a_bootstrap() -> None:
    baseline, tuned, tokens = map(np.array, draw_losses(80, -0.05))
    found = compare_rows("perplexity", pair_losses(80, -0.05))
    assert found.change == pytest.approx(np.exp(tuned.sum() / tokens.sum()) - np.exp(baseline.sum() / tokens.sum()))

    def compute_change(after: Numbers, before: Numbers, counts: Numbers, axis: int) -> Numbers:
        total = counts.sum(axis=axis)
        return np.exp(after.sum(axis=axis) / total) - np.exp(before.sum(axis=axis) / total)

    oracle = stats.bootstrap(
        (tuned, baseline, tokens),
        compute_change,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(oracle), abs=0.15 * (oracle.high - oracle.low))


def test_compare_rows_scores_have_the_interval_of_a_paired_t_test() -> None:
    generator = random.Random(7)
    baseline = [generator.random() for _ in range(50)]
    tuned = [min(1, value + generator.uniform(-0.1, 0.2)) for value in baseline]
    found = compare_rows("rougeL", pair_rows(make_rows("rougeL", baseline), make_rows("rougeL", tuned)))
    oracle = stats.ttest_rel(tuned, baseline).confidence_interval(CONFIDENCE)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert (found.baseline, found.value) == pytest.approx((fmean(baseline), fmean(tuned)))
    assert found.higher_is_better


def test_compare_rows_accuracy_has_the_interval_of_bonett_and_price() -> None:
    baseline, tuned = [0.0] * 12 + [1.0] * 28, [1.0] * 10 + [0.0] * 2 + [0.0] * 3 + [1.0] * 25
    found = compare_rows("accuracy", pair_rows(make_rows("accuracy", baseline), make_rows("accuracy", tuned)))
    gained, lost = 11 / 42, 4 / 42
    half_width = stats.norm.ppf(1 - 0.05 / 2) * math.sqrt((gained + lost - (gained - lost) ** 2) / 42)
    assert found.change == pytest.approx(7 / 40)
    assert (found.low, found.high) == pytest.approx((gained - lost - half_width, gained - lost + half_width))


def test_compare_rows_few_labels_have_the_p_value_of_mcnemar() -> None:
    baseline, tuned = [0.0] * 7 + [1.0] * 3, [1.0] * 10
    found = compare_rows("accuracy", pair_rows(make_rows("accuracy", baseline), make_rows("accuracy", tuned)))
    assert found.p_value == pytest.approx(stats.binomtest(7, 7).pvalue)


def test_compare_rows_macro_f1_is_that_of_scikit_learn() -> None:
    generator = random.Random(5)
    labels = ["billing", "shipping", "other"]
    references = [generator.choice(labels) for _ in range(60)]
    answers = [
        [label if generator.random() < share else generator.choice(labels) for label in references]
        for share in (0.4, 0.9)
    ]
    baseline, tuned = (
        [
            EvaluatedRow(str(index), {"accuracy": float(label == answer)}, label, answer)
            for index, (label, answer) in enumerate(zip(references, texts, strict=True))
        ]
        for texts in answers
    )
    found = compare_rows("macroF1", pair_rows(baseline, tuned))
    expected = [f1_score(references, texts, average="macro") for texts in answers]
    assert (found.baseline, found.value) == pytest.approx(tuple(expected))
    assert found.low is not None
    assert 0 < found.low < found.change


def test_pair_rows_in_other_order_pairs_by_digest_as_often_as_in_both() -> None:
    def make(*rows: tuple[str, float]) -> list[EvaluatedRow]:
        return [EvaluatedRow(digest, {"chrf": value}, "", "") for digest, value in rows]

    baseline = make(("a", 1), ("b", 2), ("b", 3), ("only here", 9))
    tuned = make(("b", 20), ("a", 10), ("b", 30), ("b", 40), ("only there", 90))
    found = [(pair.baseline.scores["chrf"], pair.tuned.scores["chrf"]) for pair in pair_rows(baseline, tuned)]
    assert found == [(2, 20), (1, 10), (3, 30)]


def test_compare_rows_without_score_are_left_out() -> None:
    baseline, tuned = make_rows("chrf", [10] * 30), make_rows("chrf", [20] * 30)
    tuned[3] = tuned[3]._replace(scores={})
    assert compare_rows("chrf", pair_rows(baseline, tuned)).samples == 29


NOT_COMPARABLE: dict[str, tuple[str, list[RowPair], str]] = {
    "no rows": ("evalLoss", [], "no common rows"),
    "other metric in the rows": ("rouge1", pair_losses(30, 0), "no common rows with rouge1"),
    "nan": ("chrf", pair_rows(make_rows("chrf", [1] * 30), make_rows("chrf", [1] * 29 + [math.nan])), "not finite"),
    "infinity": ("chrf", pair_rows(make_rows("chrf", [math.inf] * 2), make_rows("chrf", [1, 1])), "not finite"),
    "other tokens": (
        "evalLoss",
        pair_rows(make_loss_rows([1.0] * 30, [2] * 30), make_loss_rows([1.0] * 30, [3] * 30)),
        "different tokens",
    ),
    "no tokens": (
        "perplexity",
        pair_rows(make_loss_rows([0.0] * 30, [0] * 30), make_loss_rows([0.0] * 30, [0] * 30)),
        "no token",
    ),
    "huge loss": (
        "perplexity",
        pair_rows(make_loss_rows([1e4] * 30, [1] * 30), make_loss_rows([1.0] * 30, [1] * 30)),
        "too high",
    ),
    "bleu": ("bleu", pair_rows(make_rows("bleu", [1] * 30), make_rows("bleu", [2] * 30)), "all rows together"),
    "folds": ("crossValidationLoss", pair_losses(30, 0), "do not give crossValidationLoss"),
}


@pytest.mark.parametrize(("metric", "pairs", "reason"), NOT_COMPARABLE.values(), ids=NOT_COMPARABLE)
def test_compare_rows_not_comparable_says_why(metric: str, pairs: list[RowPair], reason: str) -> None:
    with pytest.raises(NotComparable, match=reason):
        compare_rows(metric, pairs)


def test_parse_row_reads_what_a_run_publishes() -> None:
    row = RowScores(
        row="sha256:1",
        reference="yes",
        answers={"base": GeneratedAnswer(text="maybe"), "tuned": GeneratedAnswer(text="no", is_cut=True)},
        scores={"base": {"accuracy": 1.0}, "tuned": {"accuracy": 0.0, "lossSum": 3.5}},
    )
    found = parse_row(row.model_dump_json(by_alias=True).encode())
    assert found == EvaluatedRow("sha256:1", {"accuracy": 0.0, "lossSum": 3.5}, "yes", "no")


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity"])
def test_parse_row_number_that_is_not_finite_is_kept_as_such(value: str) -> None:
    found = parse_row(f'{{"row": "a", "new": 1, "scores": {{"tuned": {{"lossSum": {value}}}}}}}'.encode())
    assert not math.isfinite(found.scores["lossSum"])


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"{}", json.dumps({"row": 1, "scores": {}}).encode(), b"\xff"])
def test_parse_row_other_content_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_row(line)
