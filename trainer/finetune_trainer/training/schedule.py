"""The learning rate of each step, for the schedules that transformers does not have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_trainer.contract import Training

_STABLE_SHARE = 5
"""`warmupStableDecay` decreases in the last one of this many equal parts of a training."""


@dataclass(frozen=True)
class Schedule:
    """A learning rate that increases linearly from zero, may stay at its peak, and then decreases to a floor."""

    shape: str
    """`linear`, `cosine` or `warmupStableDecay`."""
    warmup_steps: int
    steps: int
    """All optimizer steps of the training, of which at least one must follow the warm-up."""
    floor: float
    """The learning rate of the last step as a fraction of the peak. With 0, the rate would be zero after the last
    step, as in the schedules of transformers: a step with a rate of zero would change nothing."""

    def compute_factor(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of the peak. The first step is 0."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        end = self.steps - 1 if self.floor else self.steps
        start = self._find_decay_start(end)
        if step <= start:
            return 1.0
        progress = min((step - start) / max(end - start, 1), 1.0)
        remaining = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.floor + (1 - self.floor) * remaining

    def _find_decay_start(self, end: int) -> int:
        """Return the last step with the peak rate."""
        if self.shape != "warmupStableDecay":
            return self.warmup_steps
        return max(self.warmup_steps, end - math.ceil(self.steps / _STABLE_SHARE))


def count_warmup_steps(training: Training, steps: int) -> int:
    """Return the steps of the warm-up, which end before the last of all `steps`: its rate is the peak.

    They are computed from a ratio here because transformers would round it up to all steps of a short run.
    """
    warmup_steps = round(steps * training.warmup_ratio) if training.warmup_steps is None else training.warmup_steps
    return min(warmup_steps, steps - 1)


def build_schedule(training: Training, steps: int) -> Schedule | None:
    """Return the schedule of a training with `steps` optimizer steps, or None for one that transformers has.

    Its `warmup_stable_decay` starts the warm-up at the floor, and all its schedules would reach a floor one step after
    the last.
    """
    if training.scheduler != "warmupStableDecay" and not training.min_learning_rate_ratio:
        return None
    warmup_steps = count_warmup_steps(training, steps)
    return Schedule(training.scheduler, warmup_steps, steps, training.min_learning_rate_ratio)
