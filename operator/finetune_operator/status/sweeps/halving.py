"""Successive halving: which trials of a FineTuneSweep continue after a step.

The decision follows from losses in outcomes. It is stored in the status, as `cutAtStep` of the trials that end, before
any FineTuneJob is changed.
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

_DIGITS = 9  # so that 0.28 * 25 is 7


class HalvingState(NamedTuple):
    """The trials after all decisions that can be made."""

    rows: list[TrialStatus]
    step: int | None
    """The step that the remaining trials train up to, or None if they train to the end."""


def advance_halving(rows: Sequence[TrialStatus], halving: Halving | None) -> HalvingState:
    """Decide at each step that all remaining trials have reached, or have ended before."""
    current = list(rows)
    for step in sorted(halving.at_steps) if halving else ():
        if not all(has_arrived(row, step) for row in current):
            return HalvingState(current, step)
        if halving and not _is_decided(current, step):
            current = _cut_worst(current, step, halving.keep_fraction)
    return HalvingState(current, None)


def has_arrived(row: TrialStatus, step: int) -> bool:
    """Return whether a trial has reached a step, or does not need to."""
    return is_ended(row) or is_cut(row) or any(result.step >= step for result in row.steps)


def _is_decided(rows: Sequence[TrialStatus], step: int) -> bool:
    """Return whether the trials were compared at a step: one was cut, or one has continued."""
    is_one_cut = any(row.cut_at_step is not None and row.cut_at_step >= step for row in rows)
    return is_one_cut or any(result.step > step for row in rows for result in row.steps)


def _cut_worst(rows: Sequence[TrialStatus], step: int, keep_fraction: float) -> list[TrialStatus]:
    """Return the rows with `cutAtStep` of those that end. Complete trials are ranked too, but cannot be cut."""
    losses = _compute_losses(rows, step)
    ranked = sorted(losses, key=lambda configuration: (losses[configuration], configuration))
    kept = frozenset(ranked[: math.ceil(round(keep_fraction * len(ranked), _DIGITS))])
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
