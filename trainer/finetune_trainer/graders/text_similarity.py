"""Measures how similar two texts are."""

from __future__ import annotations

from collections.abc import Callable

from finetune_trainer.contract import TextSimilarity
from finetune_trainer.graders.base import AnswerGrader, GradedAnswer
from finetune_trainer.graders.templates import resolve_text
from finetune_trainer.graders.words import WordTokenizer

_MAX_CHARS = 10_000
"""Characters of a text that are compared: the time of ROUGE-L grows with the square of the length."""


class TextSimilarityGrader(AnswerGrader):
    """Scores the F-measure of ROUGE-L, or chrF divided by 100."""

    def __init__(self, _: str, settings: TextSimilarity) -> None:
        self._settings = settings
        self._compare = _build_rouge() if settings.metric == "rougeL" else _build_chrf()

    def score(self, answer: GradedAnswer) -> float:
        reference = resolve_text(self._settings.reference, answer)[:_MAX_CHARS]
        text = resolve_text(self._settings.input, answer)[:_MAX_CHARS]
        return self._compare(reference, text)


def _build_rouge() -> Callable[[str, str], float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=WordTokenizer())
    return lambda reference, text: float(scorer.score(reference, text)["rougeL"].fmeasure)


def _build_chrf() -> Callable[[str, str], float]:
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    # At most 1: the score of equal texts can exceed 100 by a rounding error.
    return lambda reference, text: min(1.0, float(metric.sentence_score(text, [reference]).score) / 100)
