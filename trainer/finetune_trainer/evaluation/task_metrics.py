"""What people expect to be told of each task, from the answers of both models to the same rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import regex

from finetune_trainer.contract import Task
from finetune_trainer.evaluation.class_labels import normalised
from finetune_trainer.evaluation.classification import classified, share
from finetune_trainer.evaluation.intervals import mean, paired_change, resampled
from finetune_trainer.records.evaluation import Confusion, Measure

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

    from finetune_trainer.evaluation.intervals import Rows

Texts = Sequence[str]
_MAX_LABELS = 100
_MAX_LABEL_WORDS = 10
_FEW_ROWS = 10
"""Fewer rows can well be of as many labels."""
_BLEU_ORDER = 4
_UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
"""Letters of scripts that put no space between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_WORDS = regex.compile(rf"{_UNSPACED}|(?!{_UNSPACED})[\p{{L}}\p{{N}}](?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])*")
"""Vowel signs are marks, which `re` takes for the end of a word. None begins with one, which is an emoji's."""
_LETTER = re.compile(r"[^\W\d_]")


def measures(task: Task, references: Texts, base: Texts, tuned: Texts) -> tuple[list[Measure], Confusion | None]:
    """The task's measures; for classification also what is taken for what. Nothing where there are no rows."""
    if not references:
        return [], None
    if task == "classification":
        return classified(references, base, tuned)
    if task == "summarization":
        return _rouge(references, base, tuned), None
    if task == "translation":
        names = ["chrf"] if why_no_bleu(references) else ["bleu", "chrf"]
        return [_corpus(name, references, base, tuned) for name in names], None
    return [_exact(references, base, tuned), _corpus("chrf", references, base, tuned)], None


def missing(task: Task, references: Texts) -> list[str]:
    """What the task would measure of other answers, each with why it does not of these."""
    why = why_no_bleu(references) if task == "translation" and references else None
    return [f"bleu: {why}"] if why else []


def why_no_bleu(references: Texts) -> str | None:
    """Why BLEU says nothing of these references; `None` where it does. It counts words in common up to four in a row,
    and without any four in a row a perfect translation has 0."""
    tokenize = _bleu(references).tokenizer
    if any(len(tokenize(each.rstrip()).split()) >= _BLEU_ORDER for each in references):
        return None
    return f"no answer of the validation rows has {_BLEU_ORDER} words, by which BLEU counts; chrf takes any"


def check_task(task: Task, references: Texts) -> str | None:
    """Why the task's measures do not fit the data and what to do; `None` where they do."""
    if not any(each.strip() for each in references):
        return f"evaluation.task {task} compares answers with the data's own, and no row has one; leave task out"
    return _check_labels(references) if task == "classification" else None


def _check_labels(references: Texts) -> str | None:
    labels = {normalised(each) for each in references}
    longest = max(labels, key=lambda label: len(label.split()))
    if len(labels) == len(references) >= _FEW_ROWS:
        found = f"each of the {len(references)} answers is another"
    elif len(labels) > _MAX_LABELS:
        found = f"there are {len(labels)} different answers, at most {_MAX_LABELS} can be labels"
    elif len(longest.split()) > _MAX_LABEL_WORDS:
        found = f"{longest[:60]!r}… has {len(longest.split())} words, a label has at most {_MAX_LABEL_WORDS}"
    else:
        return None
    return (
        f"evaluation.task classification would give an accuracy without labels: {found}. "
        "Choose chat or generation, or let the data's answers be labels"
    )


def _exact(references: Texts, base: Texts, tuned: Texts) -> Measure:
    """The share of answers that are the data's own but for case and surrounding space."""
    wanted = [normalised(each) for each in references]
    before, after = ([normalised(each) for each in texts] for texts in (base, tuned))
    return share("exactMatch", [*map(str.__eq__, before, wanted)], [*map(str.__eq__, after, wanted)])


class _Tokenizer:
    """Words of any script; rouge_score's own knows a to z alone, and finds nothing in Russian or Chinese.

    Gives the same for English; it does not stem, as rouge_score's does not unless asked.
    """

    def tokenize(self, text: str) -> list[str]:
        found: list[str] = _WORDS.findall(text.lower())
        return found


def _rouge(references: Texts, base: Texts, tuned: Texts) -> list[Measure]:
    """F-measures, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, tokenizer=_Tokenizer())
    before = [scorer.score(*pair) for pair in zip(references, base, strict=True)]
    after = [scorer.score(*pair) for pair in zip(references, tuned, strict=True)]
    return [_mean(name, [b[name].fmeasure for b in before], [a[name].fmeasure for a in after]) for name in names]


def _mean(name: str, base: Sequence[float], tuned: Sequence[float]) -> Measure:
    change = paired_change(base, tuned)
    return Measure(name=name, higher_is_better=True, base=mean(base), tuned=mean(tuned), change=change)


def _corpus(name: str, references: Texts, base: Texts, tuned: Texts) -> Measure:
    """BLEU or chrF of all rows together, 0 to 100, as papers report them."""
    before, after = _score(name, references, base), _score(name, references, tuned)
    count = len(references)
    return Measure(
        name=name,
        higher_is_better=True,
        base=resampled(before, count),
        tuned=resampled(after, count),
        change=resampled(lambda rows: after(rows) - before(rows), count),
    )


def _score(name: str, references: Texts, answers: Texts) -> Callable[[Rows], float]:
    """The score of any choice of rows: both are computed of counts that add up.

    By what sacrebleu's own significance tests use, which however give no interval of a change.
    """
    import numpy as np
    from sacrebleu.metrics.chrf import CHRF

    metric: Any = _bleu(references) if name == "bleu" else CHRF()
    counts = np.array(metric._extract_corpus_statistics(answers, [references]))
    # At most 100: BLEU of equal texts is a hair above it, by its logarithms.
    return lambda rows: min(100.0, float(metric._compute_score_from_stats(counts[rows].sum(axis=0).tolist()).score))


def _bleu(references: Texts) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=_bleu_tokenizer(references), force=True)


def _bleu_tokenizer(references: Texts) -> str:
    """sacrebleu's default splits at spaces; without any, a sentence would be one word."""
    text = " ".join(references)
    unspaced = len(re.findall(_UNSPACED, text))
    return "char" if unspaced * 2 > len(_LETTER.findall(text)) else "13a"
