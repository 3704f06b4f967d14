"""The changes of a FineTuneSchedule's status by decisions and promotions.

A promotion has two stored steps: `status.promoting` before the alias is written, `status.champion` afterwards. So an
operator that is killed at any point continues with the same champion, and `status.champion` is the one in the alias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from finetune_operator.api.schedule import (
    Champion,
    FineTuneSchedule,
    FineTuneScheduleStatus,
    PendingPromotion,
    ScheduledRun,
    ScheduleReason,
)
from finetune_operator.api.status import Phase
from finetune_operator.observed.complete_run import CompleteRun
from finetune_operator.observed.objects import parse_timestamp
from finetune_operator.status.schedules.promotion import SET_MESSAGE, Decision
from finetune_operator.status.schedules.runs import MAX_MESSAGE_LENGTH

RETRY_SECONDS = 3600.0
"""Seconds from a failed attempt to write the alias to the next one, if the spec stays the same. Somebody may have
corrected the object or the permissions meanwhile."""
_MAX_CHAMPIONS = 10


class Target(NamedTuple):
    """What the alias is to name, according to the spec and the decisions."""

    champion: Champion | None
    """Unset if the alias is as it should be."""
    due_in: float = 0.0
    """Seconds until the next attempt to write it."""


def find_next_undecided(status: FineTuneScheduleStatus) -> ScheduledRun | None:
    """Return the run that ended first of those without a decision, or None."""
    runs = [run for run in status.runs if run.phase and not run.decision]
    return min(runs, key=_get_order, default=None)


def is_decision_pending(status: FineTuneScheduleStatus) -> bool:
    """Return whether the champion may be about to change: a run is not decided yet, or the alias is being written.

    A run that is recorded meanwhile is compared with the champion of before, and can then not be promoted.
    """
    in_flight = status.promoting is not None and status.promoting.failure is None
    return in_flight or find_next_undecided(status) is not None


def find_champion_problem(status: FineTuneScheduleStatus) -> str | None:
    """Return why no run can be compared with the champion: the last one has failed because of it. Otherwise None."""
    last = max((run for run in status.runs if run.decision), key=_get_order, default=None)
    if last is None or status.champion is None or last.decision != ScheduleReason.CHAMPION_UNUSABLE:
        return None
    is_current = (last.champion, last.champion_digest) == (status.champion.run, status.champion.digest)
    return last.message if is_current else None


def find_known_champion(status: FineTuneScheduleStatus, name: str, now: str) -> Champion | None:
    """Return the run of that name as a pinned champion, if the status has all that is needed of it."""
    pending = [status.promoting.champion] if status.promoting else []
    known = [champion for champion in (*pending, *status.champions) if champion.run == name]
    known += [_rebuild_champion(run) for run in status.runs if run.name == name and run.model_uri]
    pinned = {"reason": ScheduleReason.PINNED.value, "promoted_time": now}
    return known[0].model_copy(update=pinned) if known else None


def build_champion(complete: CompleteRun, reason: ScheduleReason, now: str) -> Champion:
    """Return a complete run as the champion, `Promoted` by the rules or `Pinned` by `spec.champion.run`."""
    return Champion(
        run=complete.name,
        adapter_uri=complete.result.adapter_uri,
        digest=complete.result.digest,
        model_uri=complete.model_uri,
        model_revision=complete.result.model_revision,
        promoted_time=now,
        reason=reason.value,
        completion_time=complete.completion_time,
        metrics=complete.result.metrics,
    )


def record_decision(
    status: FineTuneScheduleStatus, run: ScheduledRun, decision: Decision, complete: CompleteRun | None
) -> FineTuneScheduleStatus:
    """Return the status with the decision about a run. Without `complete` the run has no result."""
    changes = {**_describe_decision(decision), "decision": decision.reason.value}
    if complete:
        changes |= _describe_result(complete)
    return _count_run(_update_run(status, run.name, changes), run, decision.reason)


def record_promoted_run(
    status: FineTuneScheduleStatus, run: ScheduledRun, decision: Decision, complete: CompleteRun
) -> FineTuneScheduleStatus:
    """Return the status with what is known of a run that is to be promoted. The decision follows the alias."""
    return _update_run(status, run.name, {**_describe_decision(decision), **_describe_result(complete)})


def begin_promotion(
    schedule: FineTuneSchedule, status: FineTuneScheduleStatus, champion: Champion, now: str
) -> FineTuneScheduleStatus:
    """Return the status with an attempt to write the alias, or without an alias with the new champion."""
    alias_uri = schedule.spec.alias.uri if schedule.spec.alias else None
    pending = PendingPromotion(
        champion=champion, alias_uri=alias_uri, attempt_time=now, generation=schedule.metadata.generation
    )
    status = status.model_copy(update={"promoting": pending, "alias_conflict": None})
    return status if alias_uri else finish_promotion(status, pending)


def finish_promotion(status: FineTuneScheduleStatus, pending: PendingPromotion) -> FineTuneScheduleStatus:
    """Return the status after the alias was written."""
    champion, old = pending.champion, status.champion
    is_new = old is None or not _is_same(old, champion)
    if old and not is_new:
        champion = champion.model_copy(update={"promoted_time": old.promoted_time})
    earlier = [each for each in status.champions if not _is_same(each, champion)]
    status = status.model_copy(
        update={
            "champion": champion,
            "champions": [champion, *earlier][:_MAX_CHAMPIONS],
            "promoting": None,
            "alias_uri": pending.alias_uri,
            "alias_conflict": None,
            "runs_since_promotion": 0 if is_new else status.runs_since_promotion,
        }
    )
    message = {"message": SET_MESSAGE} if champion.reason == ScheduleReason.PINNED else {}
    return (
        _update_run(status, champion.run, {"decision": ScheduleReason.PROMOTED.value, **message}) if is_new else status
    )


def fail_promotion(
    status: FineTuneScheduleStatus, pending: PendingPromotion, reason: ScheduleReason, message: str
) -> FineTuneScheduleStatus:
    """Return the status after a failed attempt to write the alias. The champion stays the one that it names."""
    message = message[:MAX_MESSAGE_LENGTH]
    failed = pending.model_copy(update={"failure": reason.value, "message": message})
    conflict = message if reason is ScheduleReason.ALIAS_CONFLICT else None
    status = status.model_copy(update={"promoting": failed, "alias_conflict": conflict})
    run = next((each for each in status.runs if each.name == pending.champion.run), None)
    if run is None or run.decision not in (None, *_FAILURES):
        return status
    return _count_run(_update_run(status, run.name, {"decision": reason.value}), run, reason)


def give_up_pin(status: FineTuneScheduleStatus) -> FineTuneScheduleStatus:
    """Return the status without a failed promotion that `spec.champion.run` no longer asks for.

    A failed promotion by the rules stays until it succeeds or `spec.champion.run` replaces it: it may have written the
    alias.
    """
    pending = status.promoting
    is_pinned = pending is not None and pending.champion.reason == ScheduleReason.PINNED
    return status.model_copy(update={"promoting": None}) if is_pinned else status


def find_target(schedule: FineTuneSchedule, status: FineTuneScheduleStatus, pin: Champion | None, now: str) -> Target:
    """Return what the alias is to name if it is not as it should be, and when to write it.

    `pin` is the champion that `spec.champion.run` sets, if there is one.
    """
    wanted, pending = _find_wanted_champion(schedule, status, pin), status.promoting
    if wanted is None or pending is None or not _is_same(pending.champion, wanted):
        return Target(wanted)
    if pending.champion.reason != wanted.reason:
        return Target(wanted)
    passed = (parse_timestamp(now) or 0.0) - (parse_timestamp(pending.attempt_time) or 0.0)
    is_early = pending.generation == schedule.metadata.generation and 0 <= passed < RETRY_SECONDS
    # `pending.champion` has the time of the first attempt, so that all attempts write the same object.
    return Target(pending.champion, RETRY_SECONDS - passed if is_early else 0.0)


def _find_wanted_champion(
    schedule: FineTuneSchedule, status: FineTuneScheduleStatus, pin: Champion | None
) -> Champion | None:
    spec, champion, pending = schedule.spec, status.champion, status.promoting
    is_moved = spec.alias is not None and status.alias_uri != spec.alias.uri
    if pin:
        is_set = champion is not None and _is_same(champion, pin) and champion.reason == ScheduleReason.PINNED
        return None if is_set and not (is_moved or pending or status.alias_conflict) else pin
    if pending and pending.champion.reason == ScheduleReason.PINNED:
        # The field was removed. The failed attempt may have written the alias, so what it named before is written.
        return champion.model_copy(update={"reason": ScheduleReason.PINNED.value}) if champion else None
    if pending:
        return None if spec.champion else pending.champion
    return champion if is_moved else None


_FAILURES = (ScheduleReason.ALIAS_CONFLICT, ScheduleReason.PROMOTION_FAILED)


def _is_same(first: Champion, second: Champion) -> bool:
    return (first.run, first.digest) == (second.run, second.digest)


def _get_order(run: ScheduledRun) -> tuple[float, str]:
    return parse_timestamp(run.completion_time) or 0.0, run.name


def _rebuild_champion(run: ScheduledRun) -> Champion:
    """Return a decided run as the champion. Its FineTuneJob may have been deleted."""
    fields = run.model_dump(
        include={"adapter_uri", "digest", "model_uri", "model_revision", "completion_time", "metrics"}
    )
    return Champion.model_validate({**fields, "run": run.name, "promoted_time": "", "reason": ""})


def _describe_decision(decision: Decision) -> dict[str, Any]:
    return {
        "message": decision.message[:MAX_MESSAGE_LENGTH],
        "metrics": decision.metrics,
        "changes": list(decision.changes),
    }


def _describe_result(complete: CompleteRun) -> dict[str, Any]:
    return {
        "adapter_uri": complete.result.adapter_uri,
        "digest": complete.result.digest,
        "model_uri": complete.model_uri,
        "model_revision": complete.result.model_revision,
    }


def _update_run(status: FineTuneScheduleStatus, name: str, changes: dict[str, Any]) -> FineTuneScheduleStatus:
    runs = [run.model_copy(update=changes) if run.name == name else run for run in status.runs]
    return status.model_copy(update={"runs": runs})


def _count_run(status: FineTuneScheduleStatus, run: ScheduledRun, reason: ScheduleReason) -> FineTuneScheduleStatus:
    """Count a complete run that was decided for the first time and not promoted."""
    if run.phase != Phase.COMPLETE or run.decision or reason is ScheduleReason.PROMOTED:
        return status
    return status.model_copy(update={"runs_since_promotion": status.runs_since_promotion + 1})
