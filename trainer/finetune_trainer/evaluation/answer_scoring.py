"""Scores answers to held-out rows, by the metrics of the task and by the graders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.evaluation import grader_metrics, row_scores, task_metrics
from finetune_trainer.evaluation.answers import BASE, TUNED, RowAnswers
from finetune_trainer.evaluation.row_scores import Scores
from finetune_trainer.graders.base import Grade, GradedAnswer
from finetune_trainer.graders.suite import GraderSuite
from finetune_trainer.records.evaluation import ConfusionMatrix, EndpointRecord, Measure


@dataclass(frozen=True)
class AnswerScorer:
    """Scores the answers of several models to the same rows."""

    config: TrainerConfig
    graders: GraderSuite

    def measure(self, answers: RowAnswers, baseline: str = BASE) -> tuple[list[Measure], ConfusionMatrix | None]:
        """Return the measures of the tuned model with another model, by default the base model, in the place of `base`,
        and the confusion matrix of a classification.

        Raises `GRADER_FAILED` if a grader leaves too many answers without a score.
        """
        measures, confusion = self._measure_task(answers, baseline)
        grades = [self._grade(answers, model) for model in (baseline, TUNED)]
        return measures + grader_metrics.measure_graders(*grades), confusion

    def list_problems(self, answers: RowAnswers) -> list[str]:
        """Return what lowers the metrics or prevents one, each with the reason."""
        task = self.config.evaluation.task
        return [
            *(task_metrics.list_missing(task, answers.references) if task else ()),
            *answers.list_problems(),
            *grader_metrics.list_ungraded(answers.grades_by_model),
        ]

    def score_rows(self, answers: RowAnswers) -> dict[str, list[Scores]]:
        """Return the scores of each row by metric, by the name of the model. A score that a grader did not give is
        absent."""
        return {model: self._score_rows(answers, model) for model in answers.by_model}

    def describe_endpoints(self) -> list[EndpointRecord]:
        """Return what was sent to each endpoint."""
        return [
            EndpointRecord(name=name, host=client.host, **vars(client.use))
            for name, client in self.graders.clients.items()
        ]

    def _measure_task(self, answers: RowAnswers, baseline: str) -> tuple[list[Measure], ConfusionMatrix | None]:
        task = self.config.evaluation.task
        if task is None:
            return [], None
        return task_metrics.measure_task(
            task, answers.references, answers.list_texts(baseline), answers.list_texts(TUNED)
        )

    def _score_rows(self, answers: RowAnswers, model: str) -> list[Scores]:
        task, rows = self.config.evaluation.task, [Scores() for _ in answers.rows]
        if task:
            rows = row_scores.score_rows(task, answers.references, answers.list_texts(model))
        for name, grades in self._grade(answers, model).items():
            for row, grade in zip(rows, grades, strict=True):
                if grade.score is not None:
                    row[name] = grade.score
        return rows

    def _grade(self, answers: RowAnswers, model: str) -> dict[str, list[Grade]]:
        """Return the grades of the answers of a model, which are computed once."""
        if model not in answers.grades_by_model:
            grades = self.graders.grade(_list_graded_answers(answers, model))
            grader_metrics.check_ungraded(model, grades, self.config.evaluation.max_ungraded_fraction)
            answers.grades_by_model[model] = grades
        return answers.grades_by_model[model]


def _list_graded_answers(answers: RowAnswers, model: str) -> Sequence[GradedAnswer]:
    return [
        GradedAnswer(text, row.item, row.reference or None, row.turns)
        for text, row in zip(answers.list_texts(model), answers.rows, strict=True)
    ]
