"""What people expect to be told of each task, from the answers of both models to the same rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import regex

from finetune_trainer.contract import Task
from finetune_trainer.evaluation.class_labels import normalize_text
from finetune_trainer.evaluation.classification import measure_classification, measure_share
from finetune_trainer.evaluation.intervals import bootstrap, estimate_mean, estimate_paired_change
from finetune_trainer.records.evaluation import ConfusionMatrix, Measure

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

    from finetune_trainer.evaluation.intervals import RowIndices

Texts = Sequence[str]
_MAX_LABELS = 100
_MAX_LABEL_WORDS = 10
_MIN_ROWS = 10
"""Fewer rows can well be of as many labels."""
_BLEU_ORDER = 4
_UNSPACED_LETTERS = (
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of scripts that put no space between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_WORDS = regex.compile(
    rf"{_UNSPACED_LETTERS}|(?!{_UNSPACED_LETTERS})[\p{{L}}\p{{N}}](?:(?!{_UNSPACED_LETTERS})[\p{{L}}\p{{M}}\p{{N}}])*"
)
"""Vowel signs are marks, which `re` takes for the end of a word. None begins with one, which is an emoji's."""
_LETTER = re.compile(r"[^\W\d_]")


def measure_task(
    task: Task, references: Texts, base: Texts, tuned: Texts
) -> tuple[list[Measure], ConfusionMatrix | None]:
    """The task's measures; for classification also what is taken for what. Nothing where there are no rows."""
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
    """What the task would measure of other answers, each with why it does not of these."""
    problem = explain_no_bleu(references) if task == "translation" and references else None
    return [f"bleu: {problem}"] if problem else []


def explain_no_bleu(references: Texts) -> str | None:
    """Why BLEU says nothing of these references; `None` where it does. It counts words in common up to four in a row,
    and without any four in a row a perfect translation has 0."""
    tokenize = _create_bleu(references).tokenizer
    if any(len(tokenize(reference.rstrip()).split()) >= _BLEU_ORDER for reference in references):
        return None
    return f"no answer of the validation rows has {_BLEU_ORDER} words, by which BLEU counts; chrf takes any"


def find_task_problem(task: Task, references: Texts) -> str | None:
    """Why the task's measures do not fit the data and what to do; `None` where they do."""
    if not any(reference.strip() for reference in references):
        return f"evaluation.task {task} compares answers with the data's own, and no row has one; leave task out"
    return _find_label_problem(references) if task == "classification" else None


def _find_label_problem(references: Texts) -> str | None:
    labels = {normalize_text(reference) for reference in references}
    longest = max(labels, key=lambda label: len(label.split()))
    if len(labels) == len(references) >= _MIN_ROWS:
        problem = f"each of the {len(references)} answers is another"
    elif len(labels) > _MAX_LABELS:
        problem = f"there are {len(labels)} different answers, at most {_MAX_LABELS} can be labels"
    elif len(longest.split()) > _MAX_LABEL_WORDS:
        problem = f"{longest[:60]!r}… has {len(longest.split())} words, a label has at most {_MAX_LABEL_WORDS}"
    else:
        return None
    return (
        f"evaluation.task classification would give an accuracy without labels: {problem}. "
        "Choose chat or generation, or let the data's answers be labels"
    )


def _measure_exact_match(references: Texts, base: Texts, tuned: Texts) -> Measure:
    """The share of answers that are the data's own but for case and surrounding space."""
    expected = [normalize_text(reference) for reference in references]
    base_texts, tuned_texts = ([normalize_text(answer) for answer in texts] for texts in (base, tuned))
    return measure_share(
        "exactMatch", [*map(str.__eq__, base_texts, expected)], [*map(str.__eq__, tuned_texts, expected)]
    )


class _WordTokenizer:
    """Words of any script; rouge_score's own knows a to z alone, and finds nothing in Russian or Chinese.

    Gives the same for English; it does not stem, as rouge_score's does not unless asked.
    """

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = _WORDS.findall(text.lower())
        return words


def _measure_rouge(references: Texts, base: Texts, tuned: Texts) -> list[Measure]:
    """F-measures, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=_WordTokenizer())
    base_scores = [scorer.score(*pair) for pair in zip(references, base, strict=True)]
    tuned_scores = [scorer.score(*pair) for pair in zip(references, tuned, strict=True)]
    return [
        _measure_mean(
            name,
            [base_row[name].fmeasure for base_row in base_scores],
            [tuned_row[name].fmeasure for tuned_row in tuned_scores],
        )
        for name in names
    ]


def _measure_mean(name: str, base: Sequence[float], tuned: Sequence[float]) -> Measure:
    change = estimate_paired_change(base, tuned)
    return Measure(
        name=name, higher_is_better=True, base=estimate_mean(base), tuned=estimate_mean(tuned), change=change
    )


def _measure_corpus(name: str, references: Texts, base: Texts, tuned: Texts) -> Measure:
    """BLEU or chrF of all rows together, 0 to 100, as papers report them."""
    base_score, tuned_score = (
        _build_corpus_scorer(name, references, base),
        _build_corpus_scorer(name, references, tuned),
    )
    count = len(references)
    return Measure(
        name=name,
        higher_is_better=True,
        base=bootstrap(base_score, count),
        tuned=bootstrap(tuned_score, count),
        change=bootstrap(lambda rows: tuned_score(rows) - base_score(rows), count),
    )


def _build_corpus_scorer(name: str, references: Texts, answers: Texts) -> Callable[[RowIndices], float]:
    """The score of any choice of rows: both are computed of counts that add up.

    By what sacrebleu's own significance tests use, which however give no interval of a change.
    """
    import numpy as np
    from sacrebleu.metrics.chrf import CHRF

    metric: Any = _create_bleu(references) if name == "bleu" else CHRF()
    counts = np.array(metric._extract_corpus_statistics(answers, [references]))
    # At most 100: BLEU of equal texts is a hair above it, by its logarithms.
    return lambda rows: min(100.0, float(metric._compute_score_from_stats(counts[rows].sum(axis=0).tolist()).score))


def _create_bleu(references: Texts) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=_choose_bleu_tokenizer(references), force=True)


def _choose_bleu_tokenizer(references: Texts) -> str:
    """sacrebleu's default splits at spaces; without any, a sentence would be one word."""
    text = " ".join(references)
    unspaced_count = len(re.findall(_UNSPACED_LETTERS, text))
    return "char" if unspaced_count * 2 > len(_LETTER.findall(text)) else "13a"
