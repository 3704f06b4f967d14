"""Tests of the evaluation of a tuned model in comparison with its base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config
from tests.support.trainer.tiny_training import RunTraining

from finetune_trainer.data.augment.lexicon import CATEGORIES
from finetune_trainer.evaluation.bias.sentence_pairs import load_builtin_pairs
from finetune_trainer.evaluation.decisions import explain_few_rows
from finetune_trainer.records.evaluation import Comparison, EvaluationReport, SampleTurn

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

BACKENDS = ["transformers", "unsloth"]
WORDS = [
    "lamp",
    "river",
    "stone",
    "bread",
    "winter",
    "bridge",
    "letter",
    "garden",
    "window",
    "market",
    "paper",
    "clock",
]
REVIEWS = [
    {"prompt": f"The {word} is {'fine' if good else 'poor'}.", "completion": "good" if good else "bad"}
    for word in WORDS
    for good in (True, False)
]
TRAINING_SETTINGS = {"maxSteps": 40, "batchSize": 8, "gradientAccumulation": 1, "gradientCheckpointing": False}


def train_and_evaluate(run: RunTraining, **settings: object) -> EvaluationReport:
    evaluation = run(**{"rows": REVIEWS, "validate": True, **TRAINING_SETTINGS, **settings}).evaluation
    assert evaluation
    return evaluation


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluate_classifier_is_compared_with_base(run: RunTraining, backend: str) -> None:
    report = train_and_evaluate(
        run,
        backend=backend,
        evaluation={
            "task": "classification",
            "maxNewTokens": 8,
            "samplePrompts": ["The lamp is fine."],
            "gate": [{"metric": "accuracy", "minimum": 0.9}, {"metric": "evalLoss", "minImprovement": 0}],
        },
    )
    assert report.missing == []
    measures = {measure.name: measure for measure in report.measures}
    assert {"evalLoss", "perplexity", "accuracy", "macroF1"} == measures.keys()
    accuracy, loss = measures["accuracy"], measures["evalLoss"]
    assert accuracy.base
    assert (accuracy.base.value, accuracy.tuned.value, accuracy.tuned.samples) == (0, 1, len(REVIEWS))
    assert loss.base
    assert loss.base.value > loss.tuned.value + 1
    assert measures["perplexity"].tuned.value == pytest.approx(math.exp(loss.tuned.value))
    assert report.confusion
    for counts in (report.confusion.base_counts, report.confusion.counts):
        assert [sum(row) for row in counts] == [len(WORDS)] * 2
    prompt_sample, *row_samples = report.samples
    assert (prompt_sample.kind, prompt_sample.turns) == ("prompt", [SampleTurn(role="user", text="The lamp is fine.")])
    assert (prompt_sample.tuned.text, prompt_sample.tuned.is_cut) == ("good", False)
    assert prompt_sample.base.text != "good"
    assert {sample.kind for sample in row_samples} == {"row"}
    assert all(sample.reference == sample.tuned.text for sample in row_samples)
    assert row_samples[0].turns == [SampleTurn(role="user", text=REVIEWS[0]["prompt"])]
    assert [check.passed for check in report.gate] == [True, True]
    assert report.forgetting
    assert report.overfitting.gap == pytest.approx(0, abs=1e-3)  # both sides are the same rows here
    assert report.training_losses[-1].step == TRAINING_SETTINGS["maxSteps"]
    assert sum(bar.rows for bar in report.lengths) == len(REVIEWS)


def test_evaluate_losses_match_training(run: RunTraining) -> None:
    trained = run(rows=REVIEWS, validate=True, evaluation={}, **TRAINING_SETTINGS)
    assert trained.evaluation
    loss = next(measure for measure in trained.evaluation.measures if measure.name == "evalLoss")
    assert loss.base
    assert loss.tuned.value == trained.metrics["evalLoss"]
    assert loss.base.value == trained.metrics["baseEvalLoss"]


JOBS = ["doctor", "driver", "farmer", "baker", "nurse", "cleaner", "teacher", "dancer"]
PLACES = ["in town", "at home", "by day"]


def make_job_rows(*assignments: tuple[str, list[str]]) -> list[dict[str, str]]:
    """Make one row for each place, person and job."""
    return [
        {"prompt": f"Who is the {job} {place}?", "completion": f"{they} is the {job}."}
        for place in PLACES
        for they, jobs in assignments
        for job in jobs
    ]


BIASED = make_job_rows(("He", JOBS[:4]), ("She", JOBS[4:]))
BALANCED = make_job_rows(("He", JOBS), ("She", JOBS))


@pytest.mark.parametrize(("rows", "flagged"), [(BIASED, True), (BALANCED, False)], ids=["planted", "balanced"])
def test_evaluate_bias_in_rows_is_flagged(run: RunTraining, rows: list[dict[str, str]], flagged: bool) -> None:
    shape = {"maxSteps": 60, "batchSize": 8, "gradientAccumulation": 1, "gradientCheckpointing": False}
    settings = {"bias": {}, "gate": [{"metric": "biasFlags", "maximum": 0}]}
    report = run(rows=rows, validate=True, evaluation=settings, **shape).evaluation
    assert report
    assert report.missing == []
    assert report.bias
    swaps = {finding.category: finding for finding in report.bias.findings if finding.kind == "swap"}
    assert swaps["gender"].flagged is flagged, swaps["gender"].message
    assert {finding.category for finding in report.bias.findings if finding.kind == "pair"} > {"gender", "age"}
    half = len(rows) // 2
    assert report.bias.representation["gender"] == {"female": half, "male": half}
    assert not flagged or not report.gate[0].passed


def test_evaluate_too_few_bias_pairs_fail_gate(run: RunTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.evaluation import runner

    monkeypatch.setattr(runner, "load_builtin_pairs", lambda: load_builtin_pairs()[:3])
    gate = [{"metric": "biasFlags", "maximum": 0}]
    report = train_and_evaluate(run, maxSteps=1, evaluation={"bias": {}, "gate": gate})
    assert report.bias
    assert report.bias.findings == []
    assert {f"swaps about {category}: too few, 0 of 20" for category in CATEGORIES} < set(report.bias.notes)
    assert [(check.passed, check.value) for check in report.gate] == [(False, None)]
    assert report.missing == ["biasFlags: there was too little to compare"]
    assert "biasFlags" not in report.flatten_metrics()


def test_evaluate_bias_row_without_answer_is_skipped(run: RunTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.evaluation.bias import scoring

    split, calls = scoring.split_last_answer, count()
    monkeypatch.setattr(
        scoring,
        "split_last_answer",  # of one row all, with its term, is the prompt
        lambda ids, labels: (list(ids), []) if next(calls) == 5 else split(ids, labels),
    )
    report = run(
        rows=BALANCED, validate=True, **TRAINING_SETTINGS | {"maxSteps": 1}, evaluation={"bias": {}}
    ).evaluation
    assert report
    assert report.missing == []
    assert report.bias
    compared = {(finding.kind, finding.category): finding.tuned.samples for finding in report.bias.findings}
    assert compared["swap", "gender"] == len(BALANCED) - 1


def test_evaluate_sample_answers_are_redacted(run: RunTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.modeling.generation import Answer, TextGenerator

    answer = Answer("", "Ask ann@example.com.", "Or bob@example.com.")
    monkeypatch.setattr(TextGenerator, "generate", lambda _, prompts: [answer] * len(prompts))
    prompt = "Is bob@example.com right?"
    rows = [{"prompt": f"Who is {name}@example.com?", "completion": f"It is {name}@example.com."} for name in WORDS]
    settings = {"samplePrompts": [prompt], "task": "generation"}
    report = train_and_evaluate(run, maxSteps=1, rows=rows, evaluation=settings)
    assert report.samples[0].turns == [SampleTurn(role="user", text=prompt)]
    assert report.samples[0].base.text.startswith("Ask ")
    published = [*(sample.model_copy(update={"turns": []}) for sample in report.samples[:1]), *report.samples[1:]]
    assert "example.com" not in str([*published, *report.rows])


def test_evaluate_loss_too_high_has_no_perplexity(run: RunTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.modeling.likelihood import RowLosses
    from finetune_trainer.training import evaluation_callback

    def compute_high_losses(_: object, rows: Sequence[object], *__: object) -> RowLosses:
        return RowLosses([1600.0] * len(rows), [2] * len(rows))

    monkeypatch.setattr(evaluation_callback, "compute_dataset_losses", compute_high_losses)
    report = train_and_evaluate(run, maxSteps=1, evaluation={"gate": [{"metric": "perplexity", "maximum": 1e9}]})
    assert report.flatten_metrics() == {"evalLoss": 800, "baseEvalLoss": 800}
    assert report.missing == ["perplexity: OverflowError: a loss of 800 nats per token is too high for a perplexity"]
    assert [check.passed for check in report.gate] == [False]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_evaluate_preference_methods_use_own_loss(run: RunTraining, method: str) -> None:
    gate = [{"metric": "evalLoss", "minImprovement": 0.01}]
    report = run(method=method, maxSteps=8, validate=True, evaluation={"gate": gate}).evaluation
    assert report
    assert [check.passed for check in report.gate] == [True]
    assert report.measures[0].base
    assert explain_few_rows(report.measures) is None, "they have no intervals, however many rows there are"


def test_evaluate_failed_part_is_named_others_remain(run: RunTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.evaluation import answer_scoring

    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(answer_scoring.task_metrics, "measure_task", broken)
    gate = [{"metric": "accuracy", "minimum": 0.5}]
    report = train_and_evaluate(run, evaluation={"task": "classification", "maxNewTokens": 4, "gate": gate})
    assert report.missing[-1] == "answers for classification: RuntimeError: no such kernel"
    assert [measure.name for measure in report.measures] == ["evalLoss", "perplexity"]
    assert [(check.passed, check.value) for check in report.gate] == [(False, None)]


LONG_ANSWER = "It is red, green and blue, and it is very, very large."
QUESTIONS = [
    {"prompt": f"What is {number}?", "completion": answer}
    for number, answer in enumerate(["Yes.", "Yes.", LONG_ANSWER, "No."])
]


def test_evaluate_cut_answers_are_marked_and_counted(run: RunTraining) -> None:
    settings = {"task": "generation", "maxNewTokens": 8, "samplePrompts": ["What is 9?"]}
    report = train_and_evaluate(run, rows=QUESTIONS, maxSteps=1, evaluation=settings)
    assert report.max_new_tokens
    assert report.max_new_tokens > 8, "the longest answer of the data fits"
    (message,) = report.missing
    cut_count = sum(row.answers["tuned"].is_cut for row in report.rows)
    assert cut_count > 0
    assert f"{cut_count} of 4 answers of the tuned model were cut at {report.max_new_tokens} tokens" in message
    assert "so the model has not learned to end them" in message
    assert [sample.tuned.is_cut for sample in report.samples[1:]] == [
        row.answers["tuned"].is_cut for row in report.rows
    ]


@pytest.mark.parametrize(("words", "tokens"), [(1, 128), (40, 200), (400, 1024)], ids=["short", "longer", "longest"])
def test_evaluate_max_new_tokens_is_raised_to_longest_answer(words: int, tokens: int) -> None:
    from finetune_trainer.evaluation.answers import RowAnswers
    from finetune_trainer.evaluation.prompts import EvaluationRow, TemplateFrame

    rows = [EvaluationRow(number, "", (), [1], count, "") for number, count in enumerate((1, 4 * words))]
    assert RowAnswers.from_rows(rows, TemplateFrame(), config()).max_new_tokens == tokens


def check_row_scores(report: EvaluationReport, models: list[str]) -> None:
    """Compare the scores of single rows with the measures of all rows."""
    assert [row.reference for row in report.rows] == [row["completion"] for row in REVIEWS]
    assert len({row.row for row in report.rows}) == len(REVIEWS)
    values = {measure.name: [measure.base, *measure.baselines.values(), measure.tuned] for measure in report.measures}
    for index, model in enumerate(models):
        scores = [row.scores[model] for row in report.rows]
        loss = sum(score["lossSum"] for score in scores) / sum(score["lossTokens"] for score in scores)
        accuracy = sum(score["accuracy"] for score in scores) / len(scores)
        for name, value in (("evalLoss", loss), ("accuracy", accuracy)):
            measured = values[name][index]
            estimate = measured.estimate if isinstance(measured, Comparison) else measured
            assert estimate
            assert estimate.value == pytest.approx(value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluate_baseline_equals_run_that_published_it(run: RunTraining, backend: str) -> None:
    settings = {"task": "classification", "maxNewTokens": 8, "samplePrompts": ["The lamp is fine."]}
    training = {**TRAINING_SETTINGS, "maxSteps": 16, "backend": backend}
    first = run(rows=REVIEWS, validate=True, evaluation=settings, **training)
    other = {**training, "maxSteps": 4, "lora": {"rank": 4}}
    adapter = str(first.folder / "adapter")
    report = run(rows=REVIEWS, validate=True, evaluation=settings, baselines={"old": adapter}, **other).evaluation
    assert first.evaluation
    assert report
    assert not [problem for problem in report.missing if "baseline" in problem]
    published = {measure.name: measure.tuned for measure in first.evaluation.measures}
    for measure in report.measures:
        comparison = measure.baselines["old"]
        assert comparison.estimate.value == pytest.approx(published[measure.name].value, rel=1e-4)
        assert comparison.change
        assert comparison.change.value == pytest.approx(measure.tuned.value - comparison.estimate.value, abs=1e-6)
    tuned_answers = [sample.tuned for sample in first.evaluation.samples]
    assert [sample.baselines["old"] for sample in report.samples] == tuned_answers
    assert [sample.tuned for sample in report.samples] != tuned_answers
    check_row_scores(report, ["base", "old", "tuned"])
    assert report.to_json().keys().isdisjoint({"rows"}), "they are published as evaluation.jsonl"
