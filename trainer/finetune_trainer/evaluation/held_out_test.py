"""Measures the published adapter on the rows of `evaluation.test`, in comparison with the base model and the baselines.
Imports torch, so import it only after the backend.

Nothing reads these measures to choose a model: not early stopping, not the verdicts and not the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.evaluation import baselines, requirements
from finetune_trainer.evaluation.answer_scoring import AnswerScorer
from finetune_trainer.evaluation.answers import BASE, TUNED, RowAnswers
from finetune_trainer.evaluation.losses import measure_eval_loss
from finetune_trainer.evaluation.prompts import select_rows
from finetune_trainer.evaluation.row_scores import ValidationLosses
from finetune_trainer.modeling.batch_limits import limit_loss_tokens
from finetune_trainer.modeling.likelihood import RowLosses, compute_dataset_losses, measure_base_and_tuned
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.records.evaluation import Measure

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData


@dataclass
class HeldOutTestEvaluation:
    """The measures of the test rows so far. The models are measured one after the other."""

    config: TrainerConfig
    loaded: LoadedModel
    prepared: PreparedData
    heartbeat: Callable[[], None]
    scorer: AnswerScorer
    measures: list[Measure] = field(default_factory=list)
    _losses: ValidationLosses | None = None
    _answers: RowAnswers | None = None

    def measure_models(self, section: Callable[[str], AbstractContextManager[None]]) -> list[str]:
        """Measure the base model and the tuned model. `section` returns the context of a part that may fail.

        Returns what lowers the metrics of the task, or prevents one, each with the reason.
        """
        problems: list[str] = []
        with section("test loss"):
            self._measure_losses()
        if self.config.evaluation.scores_answers:
            with section("answers to the test rows"):
                problems = self._measure_answers()
        return problems

    def _measure_losses(self) -> None:
        base, tuned = measure_base_and_tuned(self.loaded.model, self._compute_losses)
        self._losses = ValidationLosses(tuned.token_counts, {BASE: base.sums, TUNED: tuned.sums})
        self._add(measure_eval_loss(tuned.token_counts, base.sums, tuned.sums))

    def _measure_answers(self) -> list[str]:
        rows, texts = self._rows, self.prepared.test_texts
        if texts is None:
            raise ValueError("the texts of the test rows were not kept")
        selected = select_rows(rows, texts, self.loaded.tokenizer, self.config.evaluation.max_samples)
        answers = RowAnswers.from_rows(*selected, self.config)
        base, tuned = measure_base_and_tuned(self.loaded.model, lambda: answers.generate(self.loaded, self.heartbeat))
        answers.by_model |= {BASE: base, TUNED: tuned}
        measures, _ = self.scorer.measure(answers)
        self._answers = answers
        self._add(*measures)
        return [f"test rows, {problem}" for problem in self.scorer.list_problems(answers)]

    def measure_baseline(self, name: str) -> None:
        """Measure the model with the adapter of a baseline, which is active."""
        if self._losses:
            self._losses.sums[name] = self._compute_losses().sums
            self._compare(name, [baselines.compare_eval_loss(self._losses, name)])
        if self._answers:
            self._answers.by_model[name] = self._answers.generate(self.loaded, self.heartbeat)
            self._compare(name, self.scorer.measure(self._answers, name)[0])

    @property
    def _rows(self) -> datasets.Dataset:
        if self.prepared.test is None:
            raise ValueError("there is no test data")
        return self.prepared.test

    def _compute_losses(self) -> RowLosses:
        max_tokens = limit_loss_tokens(self.config, get_max_positions(self.loaded.model.config))
        losses = compute_dataset_losses(self.loaded.model, self._rows, self.heartbeat, max_tokens)
        if not all(map(math.isfinite, losses.sums)):
            raise ArithmeticError("the loss of a test row is not finite")
        return losses

    def _add(self, *measures: Measure) -> None:
        self.measures += map(_rename_measure, measures)

    def _compare(self, baseline: str, compared: Sequence[Measure]) -> None:
        self.measures = baselines.add_comparisons(self.measures, baseline, [*map(_rename_measure, compared)])


def _rename_measure(measure: Measure) -> Measure:
    return measure.model_copy(update={"name": requirements.get_test_metric(measure.name)})
