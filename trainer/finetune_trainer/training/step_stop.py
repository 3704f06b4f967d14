"""The end of a training at a requested optimizer step, as plain data without heavy imports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class StepEvaluation:
    """The loss of a training at one optimizer step."""

    step: int
    loss: float
    """Mean loss on the validation data, or the training loss of the step without validation data."""
    on_validation: bool = True
    """Whether the loss was measured on the validation data."""
    row_sums: Sequence[float] = ()
    """Summed loss of the supervised tokens of each validation row, in nats. Empty for methods whose loss is not one of
    tokens, and without validation data."""
    token_counts: Sequence[int] = ()
    """Supervised tokens of each of these rows."""

    @property
    def is_finite(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.loss)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read an evaluation from a checkpoint."""
        return cls(**content)

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation for a checkpoint. All digits are kept."""
        return {**vars(self), "row_sums": list(self.row_sums), "token_counts": list(self.token_counts)}


class StepReached(Exception):
    """The training is at the step that it was to stop at. It is evaluated, and its state is saved.

    Not an error: it leaves the loop of transformers before anything is done that an uninterrupted training would not
    do at this step, such as the restoration of the best adapter.
    """

    def __init__(self, evaluation: StepEvaluation, total_steps: int) -> None:
        super().__init__(f"step {evaluation.step} is reached")
        self.evaluation = evaluation
        self.total_steps = total_steps
