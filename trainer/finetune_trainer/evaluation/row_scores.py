"""Scores of single rows, published in `evaluation.jsonl`: with them, results of several runs can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.contract import Task
from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.data.row_digests import iterate_digests
from finetune_trainer.evaluation.answers import RowAnswers
from finetune_trainer.evaluation.class_labels import ClassLabels, normalize_text
from finetune_trainer.evaluation.prompts import select_row_numbers
from finetune_trainer.evaluation.task_metrics import create_bleu
from finetune_trainer.graders.words import WordTokenizer
from finetune_trainer.records.evaluation import RowScores

if TYPE_CHECKING:
    from finetune_trainer.data.row_digests import DigestTable

Scores = dict[str, float]
MAX_LOSS_ROWS = 10_000
"""Maximum number of rows without answers whose losses are published."""
_ROUGE_NAMES = ["rouge1", "rouge2", "rougeL"]


@dataclass(frozen=True)
class ValidationLosses:
    """Losses of all validation rows, in the order of the validation split, under several models."""

    token_counts: Sequence[int]
    """Supervised tokens of each row."""
    sums: dict[str, Sequence[float]] = field(default_factory=dict)
    """Summed loss of each row in nats, by the name of the model."""

    def get_scores(self, row_number: int) -> dict[str, Scores]:
        """Return the loss of a row by model: `lossSum` in nats, and the number of its supervised tokens."""
        return {
            model: {"lossSum": sums[row_number], "lossTokens": float(self.token_counts[row_number])}
            for model, sums in self.sums.items()
        }


def build_row_scores(
    answers: RowAnswers | None,
    scores: Mapping[str, Sequence[Scores]],
    losses: ValidationLosses | None,
    digests: DigestTable,
) -> list[RowScores]:
    """Return losses, answers and scores of validation rows, without personal data and secrets. `scores` are those of
    the answers by the name of the model, and `digests` are those of all validation rows.

    There are at most `MAX_LOSS_ROWS` rows, evenly spaced over all rows, and the rows with answers.
    """
    answered = _build_answered_rows(answers, scores) if answers else {}
    measured = select_row_numbers(len(losses.token_counts), MAX_LOSS_ROWS) if losses else []
    numbers = sorted({*answered, *measured})
    return [
        _add_losses(answered.get(number) or RowScores(row=digest, scores={}), losses, number)
        for number, digest in zip(numbers, iterate_digests(digests[numbers]), strict=True)
    ]


def _build_answered_rows(answers: RowAnswers, scores: Mapping[str, Sequence[Scores]]) -> dict[int, RowScores]:
    """Return the answers and their scores by the number of the row."""
    return {
        row.number: RowScores(
            row=row.digest,
            reference=redact_pii(row.reference, PII_KINDS),
            answers=answers.get_redacted(index),
            scores={model: scores[model][index] for model in scores},
            sent_to=answers.list_endpoints(index) or None,
        )
        for index, row in enumerate(answers.rows)
    }


def _add_losses(row: RowScores, losses: ValidationLosses | None, number: int) -> RowScores:
    if losses is None:
        return row
    row_losses = losses.get_scores(number)
    models = row_losses | row.scores
    return row.model_copy(
        update={"scores": {model: row.scores.get(model, {}) | row_losses.get(model, {}) for model in models}}
    )


def score_rows(task: Task, references: Sequence[str], answers: Sequence[str]) -> list[Scores]:
    """Return the scores of each row by metric, in the units of the metrics of all rows.

    `chrf` and `bleu` of a sentence are no terms of those of all rows, which count over all rows together.
    """
    if not references:
        return []
    score_row = _build_row_scorer(task, references)
    return [score_row(reference, answer) for reference, answer in zip(references, answers, strict=True)]


def _build_row_scorer(task: Task, references: Sequence[str]) -> Callable[[str, str], Scores]:
    if task == "classification":
        labels = ClassLabels(references)
        return lambda reference, answer: {"accuracy": float(labels.find_index(reference) == labels.find_index(answer))}
    if task == "summarization":
        return _build_rouge_scorer()
    if task == "translation":
        return _build_translation_scorer(references)
    return lambda reference, answer: {
        "exactMatch": float(normalize_text(reference) == normalize_text(answer)),
        "chrf": _compute_chrf(reference, answer),
    }


def _build_rouge_scorer() -> Callable[[str, str], Scores]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(_ROUGE_NAMES, tokenizer=WordTokenizer())
    return lambda reference, answer: {name: score.fmeasure for name, score in scorer.score(reference, answer).items()}


def _build_translation_scorer(references: Sequence[str]) -> Callable[[str, str], Scores]:
    bleu = create_bleu(references)
    bleu.effective_order = True  # so that a sentence of fewer than four words has a score
    return lambda reference, answer: {
        "bleu": float(bleu.sentence_score(answer, [reference]).score),
        "chrf": _compute_chrf(reference, answer),
    }


def _compute_chrf(reference: str, answer: str) -> float:
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(answer, [reference]).score)
