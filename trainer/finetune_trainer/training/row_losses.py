"""The losses of each validation row at the evaluations that are compared with each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class RowLossHistory:
    """Summed losses of the validation rows, in nats, at some evaluations. The rows are the same, in the same order."""

    token_counts: Sequence[int] = ()
    """Supervised tokens of each row."""
    sums_by_step: dict[int, Sequence[float]] = field(default_factory=dict)
    """Summed loss of the supervised tokens of each row, by the optimizer step of the evaluation."""

    def record(self, step: int, sums: Sequence[float], token_counts: Sequence[int]) -> None:
        """Add the losses after an optimizer step."""
        self.token_counts = token_counts
        self.sums_by_step[step] = sums

    def keep(self, steps: Collection[int]) -> None:
        """Forget the losses of all other steps."""
        self.sums_by_step = {step: sums for step, sums in self.sums_by_step.items() if step in steps}

    def subtract(self, later_step: int, earlier_step: int) -> list[float] | None:
        """Return the change of each row's summed loss between two steps, or None if one was not recorded or kept."""
        if not {later_step, earlier_step} <= self.sums_by_step.keys():
            return None
        pairs = zip(self.sums_by_step[later_step], self.sums_by_step[earlier_step], strict=True)
        return [later - earlier for later, earlier in pairs]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read the losses from a checkpoint."""
        return cls(content["tokens"], {int(step): sums for step, sums in content["sums"].items()})

    def to_json(self) -> dict[str, Any]:
        """Return the losses for a checkpoint. All digits are kept."""
        return {
            "tokens": list(self.token_counts),
            "sums": {str(step): list(v) for step, v in self.sums_by_step.items()},
        }
