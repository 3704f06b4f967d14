"""Scores of single rows agree with the metrics of all rows, and with sacrebleu."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, import_libraries
from tests.support.trainer.tiny_training import make_digests

from finetune_trainer.contract import Task
from finetune_trainer.data.row_digests import iterate_digests
from finetune_trainer.evaluation.task_metrics import measure_task
from finetune_trainer.records.evaluation import GeneratedAnswer

if TYPE_CHECKING:
    from finetune_trainer.evaluation.row_scores import ValidationLosses

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


def make_losses(count: int) -> ValidationLosses:
    from finetune_trainer.evaluation.row_scores import ValidationLosses

    return ValidationLosses(range(1, count + 1), {"base": [2.0] * count, "tuned": [1.0] * count})


def test_build_row_scores_without_a_task_has_the_losses_of_all_rows() -> None:
    import_libraries()
    from finetune_trainer.evaluation.row_scores import build_row_scores

    digests = make_digests(3)
    rows = build_row_scores(None, {}, make_losses(3), digests)
    assert [row.row for row in rows] == list(iterate_digests(digests))
    assert rows[1].to_json() == {
        "row": rows[1].row,
        "reference": "",
        "answers": {},
        "scores": {"base": {"lossSum": 2, "lossTokens": 2}, "tuned": {"lossSum": 1, "lossTokens": 2}},
    }


def test_build_row_scores_of_many_rows_are_evenly_spaced_and_have_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import_libraries()
    from finetune_trainer.evaluation import row_scores
    from finetune_trainer.evaluation.answers import RowAnswers
    from finetune_trainer.evaluation.prompts import EvaluationRow

    monkeypatch.setattr(row_scores, "MAX_LOSS_ROWS", 3)
    digests = make_digests(9)
    names = list(iterate_digests(digests))
    answer = GeneratedAnswer(text="Yes")
    answers = RowAnswers(
        rows=[EvaluationRow(number, names[number], (), [1], 1, "yes") for number in (1, 4)],
        by_model={"tuned": [answer, answer]},
    )
    scores = {"tuned": row_scores.score_rows("generation", answers.references, answers.list_texts("tuned"))}
    rows = row_scores.build_row_scores(answers, scores, make_losses(9), digests)
    assert [row.row for row in rows] == [names[number] for number in (0, 1, 4, 8)]
    assert [row.reference for row in rows] == ["", "yes", "yes", ""]
    assert rows[1].answers == {"tuned": answer}
    assert rows[1].scores["tuned"] == {
        "exactMatch": 1,
        "chrf": pytest.approx(50, abs=50),
        "lossSum": 1,
        "lossTokens": 2,
    }
    assert rows[1].scores["base"] == {"lossSum": 2, "lossTokens": 2}
    assert row_scores.build_row_scores(answers, scores, None, digests)[0].scores["tuned"].keys() == {
        "exactMatch",
        "chrf",
    }
