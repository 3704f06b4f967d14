"""Successive halving: which trials of a FineTuneSweep continue after a step.

The decision follows from losses in outcomes. It is stored in the status, as `comparedAtStep` and as `cutAtStep` of the
trials that end, before any FineTuneJob is changed.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from finetune_operator.api.sweep import TrialStatus
from finetune_operator.status.sweeps.trials import COMPLETE, is_cut, is_ended
from finetune_trainer.contract import Halving


class HalvingState(NamedTuple):
    """The trials after all decisions that can be made."""

    rows: list[TrialStatus]
    step: int | None
    """The step that the remaining trials train up to, or None if they train to the end."""
    compared_at_step: int | None
    """The last step at which trials were compared."""


def advance_halving(
    rows: Sequence[TrialStatus], halving: Halving | None, compared_at_step: int | None = None
) -> HalvingState:
    """Decide at each step that all remaining trials have reached, or have ended before. A decision that was made is
    never made again: trials that have failed since would leave a place, or lower a mean."""
    current = list(rows)
    for step in sorted(halving.at_steps) if halving else ():
        if not all(has_arrived(row, step) for row in current):
            return HalvingState(current, step, compared_at_step)
        if halving and step > (compared_at_step or 0):
            current, compared_at_step = _cut_worst(current, step, halving), step
    return HalvingState(current, None, compared_at_step)


def has_arrived(row: TrialStatus, step: int) -> bool:
    """Return whether a trial has reached a step, or does not need to."""
    return is_ended(row) or is_cut(row) or any(result.step >= step for result in row.steps)


def _cut_worst(rows: Sequence[TrialStatus], step: int, halving: Halving) -> list[TrialStatus]:
    """Return the rows with `cutAtStep` of those that end. Complete trials are ranked too, but cannot be cut."""
    losses = _compute_losses(rows, step)
    ranked = sorted(losses, key=lambda configuration: (losses[configuration], configuration))
    kept = frozenset(ranked[: halving.count_kept(len(ranked))])
    return [
        row if is_ended(row) or is_cut(row) or row.configuration in kept
        else row.model_copy(update={"cut_at_step": step})
        for row in rows
    ]  # fmt: skip


def _compute_losses(rows: Sequence[TrialStatus], step: int) -> dict[int, float]:
    """Return the loss of each configuration that remains: of several seeds, the mean. A missing one is infinite."""
    losses = defaultdict[int, list[float]](list)
    for row in rows:
        if not is_cut(row) and (row.phase == COMPLETE or not is_ended(row)):
            losses[row.configuration].append(_get_loss(row, step))
    return {configuration: statistics.fmean(values) for configuration, values in losses.items()}


def _get_loss(row: TrialStatus, step: int) -> float:
    """Return the loss at a step. A trial that has fewer steps has the loss of its end."""
    loss = next((result.eval_loss for result in row.steps if result.step >= step), row.value)
    return loss if loss is not None and math.isfinite(loss) else math.inf
