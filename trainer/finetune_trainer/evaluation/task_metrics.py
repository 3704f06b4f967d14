"""Computes the metrics of each task from the answers of both models to the same rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Task
from finetune_trainer.evaluation.class_labels import normalize_text
from finetune_trainer.evaluation.classification import measure_classification
from finetune_trainer.evaluation.paired_measures import measure_mean, measure_share, measure_statistic
from finetune_trainer.graders.words import UNSPACED_LETTERS, WordTokenizer
from finetune_trainer.records.evaluation import ConfusionMatrix, Measure

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

Texts = Sequence[str]
_MAX_LABELS = 100
_MAX_LABEL_WORDS = 10
_MIN_ROWS = 10
"""With fewer rows, each may have a label of its own."""
_BLEU_ORDER = 4
_LETTER = re.compile(r"[^\W\d_]")


def measure_task(
    task: Task, references: Texts, base: Texts, tuned: Texts
) -> tuple[list[Measure], ConfusionMatrix | None]:
    """Return the measures of a task, and the confusion matrix of a classification. There are none without rows."""
    if not references:
        return [], None
    if task == "classification":
        return measure_classification(references, base, tuned)
    if task == "summarization":
        return _measure_rouge(references, base, tuned), None
    if task == "translation":
        names = ["chrf"] if explain_no_bleu(references) else ["bleu", "chrf"]
        return [_measure_corpus(name, references, base, tuned) for name in names], None
    return [_measure_exact_match(references, base, tuned), _measure_corpus("chrf", references, base, tuned)], None


def list_missing(task: Task, references: Texts) -> list[str]:
    """Return the metrics of the task that cannot be measured on these answers, each with the reason."""
    problem = explain_no_bleu(references) if task == "translation" and references else None
    return [f"bleu: {problem}"] if problem else []


def explain_no_bleu(references: Texts) -> str | None:
    """Return why BLEU cannot be measured on these references, or None. BLEU counts common sequences of up to four
    words, and is 0 even for a perfect translation if no reference has four words."""
    tokenize = create_bleu(references).tokenizer
    if any(len(tokenize(reference.rstrip()).split()) >= _BLEU_ORDER for reference in references):
        return None
    return f"no reference answer has {_BLEU_ORDER} words, which BLEU needs; chrf has no such limit"


def find_task_problem(task: Task, references: Texts) -> str | None:
    """Return why the task does not match the data and what to do, or None."""
    if not any(reference.strip() for reference in references):
        return (
            f"evaluation.task {task} compares answers with those of the data, but no row has a prompt and an answer; "
            "remove evaluation.task"
        )
    return _find_label_problem(references) if task == "classification" else None


def _find_label_problem(references: Texts) -> str | None:
    labels = {normalize_text(reference) for reference in references}
    longest = max(labels, key=lambda label: len(label.split()))
    if len(labels) == len(references) >= _MIN_ROWS:
        problem = f"all {len(references)} answers are different"
    elif len(labels) > _MAX_LABELS:
        problem = f"there are {len(labels)} different answers, at most {_MAX_LABELS} can be labels"
    elif len(longest.split()) > _MAX_LABEL_WORDS:
        problem = f"{longest[:60]!r}… has {len(longest.split())} words, a label has at most {_MAX_LABEL_WORDS}"
    else:
        return None
    return (
        f"evaluation.task classification would give an accuracy without labels: {problem}. "
        "Set evaluation.task to chat or generation, or use data whose answers are labels"
    )


def _measure_exact_match(references: Texts, base: Texts, tuned: Texts) -> Measure:
    """Return the fraction of answers that equal those of the data, except for case and surrounding whitespace."""
    expected = [normalize_text(reference) for reference in references]
    base_texts, tuned_texts = ([normalize_text(answer) for answer in texts] for texts in (base, tuned))
    return measure_share(
        "exactMatch", [*map(str.__eq__, base_texts, expected)], [*map(str.__eq__, tuned_texts, expected)]
    )


def _measure_rouge(references: Texts, base: Texts, tuned: Texts) -> list[Measure]:
    """Return the F-measures of ROUGE, between 0 and 1."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=WordTokenizer())
    base_scores = [scorer.score(*pair) for pair in zip(references, base, strict=True)]
    tuned_scores = [scorer.score(*pair) for pair in zip(references, tuned, strict=True)]
    return [
        measure_mean(
            name,
            [base_row[name].fmeasure for base_row in base_scores],
            [tuned_row[name].fmeasure for tuned_row in tuned_scores],
        )
        for name in names
    ]


def _measure_corpus(name: str, references: Texts, base: Texts, tuned: Texts) -> Measure:
    """Return BLEU or chrF of all rows together, between 0 and 100.

    It is computed from counts of each row that add up, with the functions of sacrebleu's significance tests, which
    compute no interval of a change.
    """
    import numpy as np
    from sacrebleu.metrics.chrf import CHRF

    metric: Any = create_bleu(references) if name == "bleu" else CHRF()
    base_counts, tuned_counts = (
        np.array(metric._extract_corpus_statistics(answers, [references])) for answers in (base, tuned)
    )
    # At most 100: BLEU of equal texts exceeds it by a rounding error of its logarithms.
    return measure_statistic(
        name,
        lambda counts: min(100.0, float(metric._compute_score_from_stats(counts.sum(axis=0).tolist()).score)),
        base_counts,
        tuned_counts,
    )


def create_bleu(references: Texts) -> BLEU:
    """Return the metric with the tokenizer for the script of the references."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=_choose_bleu_tokenizer(references), force=True)


def _choose_bleu_tokenizer(references: Texts) -> str:
    """Return `char` for scripts without spaces, where the default of sacrebleu would treat a sentence as one word."""
    text = " ".join(references)
    unspaced_count = len(re.findall(UNSPACED_LETTERS, text))
    return "char" if unspaced_count * 2 > len(_LETTER.findall(text)) else "13a"
