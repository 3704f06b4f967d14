"""Scores of single rows agree with the metrics of all rows, and with sacrebleu."""

from __future__ import annotations

from statistics import fmean

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, import_libraries

from finetune_trainer.contract import Task
from finetune_trainer.evaluation.task_metrics import measure_task

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

REFERENCES = ["The cat sat on the mat.", "Positive", "Hallo Welt", "a b c d e"]
ANSWERS = ["A cat sat on a mat.", "positive", "Hello world", "a b c d e"]


@pytest.mark.parametrize("task", ["classification", "summarization", "chat", "generation"])
def test_score_rows_mean_is_the_metric(task: Task) -> None:
    import_libraries()
    from finetune_trainer.evaluation.row_scores import score_rows

    scores = score_rows(task, REFERENCES, ANSWERS)
    measures = {measure.name: measure.tuned.value for measure in measure_task(task, REFERENCES, ANSWERS, ANSWERS)[0]}
    assert scores[0].keys() == measures.keys() - {"macroF1"}
    for name in scores[0].keys() - {"chrf"}:
        assert fmean(row[name] for row in scores) == pytest.approx(measures[name])


def test_score_rows_of_a_translation_are_those_of_sentences() -> None:
    import_libraries()
    from sacrebleu import sentence_bleu, sentence_chrf

    from finetune_trainer.evaluation.row_scores import score_rows

    assert score_rows("translation", REFERENCES, ANSWERS) == [
        {
            "bleu": pytest.approx(sentence_bleu(answer, [reference]).score),
            "chrf": pytest.approx(sentence_chrf(answer, [reference]).score),
        }
        for reference, answer in zip(REFERENCES, ANSWERS, strict=True)
    ]
    assert score_rows("translation", [], []) == []
