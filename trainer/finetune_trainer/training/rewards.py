"""Rewards of generated answers, by the graders that `training.rewards` names."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Evaluation, Grader, Reason, Training
from finetune_trainer.data.row_archive import ArchivedRow
from finetune_trainer.errors import TrainerError
from finetune_trainer.graders.base import Grade, GradedAnswer
from finetune_trainer.graders.suite import GraderSuite
from finetune_trainer.modeling.generation import CompletionDecoder

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

RewardFunction = Callable[..., list[float | None]]
"""A reward function of TRL: it returns one reward for each answer, or None if there is none."""
_WINDOW_BATCHES = 10
"""Batches over which the fraction of answers without a score is computed."""
_MIN_ANSWERS = 20
"""Answers from which on the fraction counts."""


@dataclass
class RewardScorer:
    """Scores generated answers as the evaluation does: the same text, by the same graders."""

    training: Training
    evaluation: Evaluation
    rows: datasets.Dataset
    """Prompts in tokens, in the column `prompt_ids`."""
    texts: datasets.Dataset
    """The `ArchivedRow` of each prompt."""
    tokenizer: PreTrainedTokenizerBase
    heartbeat: Callable[[], None] = lambda: None
    """Called while answers are graded, which can take long if judges are asked."""
    _ungraded: dict[str, deque[tuple[int, int]]] = field(default_factory=dict)
    """Answers without a score and all answers of the last batches, by grader."""
    _batch: tuple[Sequence[Sequence[int]], dict[str, list[Grade]]] | None = None
    """The last answers and their grades: TRL calls a function for each reward with the same answers."""

    def __post_init__(self) -> None:
        graders = select_graders(self.training, self.evaluation)
        self.graders = GraderSuite(graders, self.evaluation.endpoints, lambda: self.heartbeat())
        self._decoder = CompletionDecoder(self.tokenizer)

    @property
    def weights(self) -> list[float]:
        """The weights of the reward functions."""
        return [reward.weight for reward in self.training.rewards]

    def build_functions(self) -> list[RewardFunction]:
        """Return the reward functions, named after their graders."""
        return [self._build_function(reward.grader) for reward in self.training.rewards]

    def _build_function(self, name: str) -> RewardFunction:
        def reward(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
            return self._list_scores(name, self._grade(prompts, completion_ids))

        reward.__name__ = name
        return reward

    def _list_scores(self, name: str, grades: dict[str, list[Grade]]) -> list[float | None]:
        """Return the scores of a reward. An answer that one reward cannot score has none at all: TRL sums the scores
        that there are, so that a missing one would count as 0."""
        columns = [grades[reward.grader] for reward in self.training.rewards]
        is_complete = [all(grade.score is not None for grade in row) for row in zip(*columns, strict=True)]
        return [grade.score if each else None for grade, each in zip(grades[name], is_complete, strict=True)]

    def _grade(self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> dict[str, list[Grade]]:
        """Return the grades of the answers. `prompts` are the numbers of the rows.

        Raises `GRADER_FAILED` if a grader left too many answers of the last batches without a score.
        """
        if self._batch is None or self._batch[0] is not completion_ids:
            self.heartbeat()
            pairs = zip(map(int, prompts), completion_ids, strict=True)
            grades = self.graders.grade([self._build_answer(row, ids) for row, ids in pairs])
            self._check_ungraded(grades)
            self._batch = completion_ids, grades
        return self._batch[1]

    def _build_answer(self, row_number: int, answer_ids: Sequence[int]) -> GradedAnswer:
        row = ArchivedRow.from_columns(self.texts[row_number])
        answer = self._decoder.decode(answer_ids, self.rows[row_number]["prompt_ids"])
        return GradedAnswer(answer.final, row.item, row.reference, row.turns)

    def _check_ungraded(self, grades_by_name: dict[str, list[Grade]]) -> None:
        limit = self.evaluation.max_ungraded_fraction
        for name, grades in grades_by_name.items():
            counts = self._ungraded.setdefault(name, deque(maxlen=_WINDOW_BATCHES))
            problems = [grade.problem for grade in grades if grade.score is None]
            counts.append((len(problems), len(grades)))
            ungraded, answers = map(sum, zip(*counts, strict=True))
            if problems and answers >= _MIN_ANSWERS and ungraded > limit * answers:
                raise TrainerError(
                    Reason.GRADER_FAILED,
                    f"training.rewards: {name} gave no score to {ungraded} of the last {answers} answers "
                    f"({problems[0]}), more than evaluation.maxUngradedFraction {limit:g}; correct the grader or its "
                    "endpoint; the next attempt resumes from the latest checkpoint",
                )


def select_graders(training: Training, evaluation: Evaluation) -> list[Grader]:
    """Return the graders of the rewards, and those that weighted ones of them need."""
    graders = {grader.name: grader for grader in evaluation.graders}
    names = {reward.grader for reward in training.rewards}
    for grader in evaluation.graders:
        if grader.name in names and grader.weighted:
            names |= {term.grader for term in grader.weighted.terms}
    return [grader for name, grader in graders.items() if name in names]
