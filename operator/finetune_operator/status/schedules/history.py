"""Which FineTuneJobs of a FineTuneSchedule are above its history limits."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.api.objects import Body
from finetune_operator.api.schedule import FineTuneScheduleSpec, FineTuneScheduleStatus
from finetune_operator.observed.objects import (
    find_true_condition,
    get_creation_time,
    get_name,
    is_being_deleted,
    is_finished,
)
from finetune_operator.status.schedules.runs import is_undecided


def list_superfluous_runs(
    spec: FineTuneScheduleSpec, status: FineTuneScheduleStatus, children: Iterable[Body]
) -> list[Body]:
    """Return the FineTuneJobs to delete: the oldest of the complete and of the other ended ones, above their limits.

    None of them is the champion, set in `spec.champion`, or without a recorded end and decision.
    """
    ended = [child for child in children if is_finished(child)]
    ended.sort(key=lambda child: (get_creation_time(child), get_name(child)), reverse=True)
    complete = [child for child in ended if find_true_condition(child, "Complete")]
    failed = [child for child in ended if not find_true_condition(child, "Complete")]
    surplus = [*complete[spec.successful_runs_history_limit :], *failed[spec.failed_runs_history_limit :]]
    kept = _list_kept_names(spec, status)
    return [child for child in surplus if get_name(child) not in kept and not is_being_deleted(child)]


def _list_kept_names(spec: FineTuneScheduleSpec, status: FineTuneScheduleStatus) -> set[str]:
    undecided = {run.name for run in status.runs if run.phase is None or is_undecided(run)}
    champion = {status.champion.run} if status.champion else set()
    return undecided | champion | ({spec.champion.run} if spec.champion else set())
