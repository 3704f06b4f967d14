"""Creates the FineTuneJobs of a FineTuneSchedule.

A run is recorded in the status, then its FineTuneJob is created, then the record is completed. Each step follows from
the stored status and the cluster, so that the operator may be killed between any two of them.
"""

from __future__ import annotations

import re
from datetime import datetime

from finetune_operator.api.schedule import (
    FineTuneScheduleStatus,
    ScheduledRun,
    ScheduleEventReason,
    ScheduleReason,
    Trigger,
)
from finetune_operator.controller.finetuneschedule.inputs_checker import InputsChecker
from finetune_operator.controller.finetuneschedule.request import ScheduleRequest
from finetune_operator.controller.finetuneschedule.step import AT_ONCE, Step
from finetune_operator.controller.run_control import Refusal, RefusalKind, RunControl
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.observed.objects import get_name, is_controlled_by, is_finished
from finetune_operator.resources.scheduled_run import add_champion, build_scheduled_run
from finetune_operator.status.events import EventContent
from finetune_operator.status.schedules import champions, runs, slots, triggers
from finetune_operator.status.schedules.conditions import Stall
from finetune_operator.status.schedules.slots import Timetable
from finetune_operator.status.schedules.times import format_time, parse_time
from finetune_operator.status.schedules.triggers import Due

REFUSED_RETRY_SECONDS = 60.0
"""Seconds until a refused FineTuneJob is tried again. A quota may have been raised, which no watch reports."""
_SECONDS_PER_MINUTE = 60
_REASONS = {
    RefusalKind.INVALID: ScheduleReason.INVALID_TEMPLATE,
    RefusalKind.NOT_ALLOWED: ScheduleReason.NOT_ALLOWED,
    RefusalKind.REFUSED: ScheduleReason.RUN_REFUSED,
    RefusalKind.NAME_CONFLICT: ScheduleReason.NAME_CONFLICT,
}
_SPEC_PATH = re.compile(r"(?<![\w.])spec\.")
_TEMPLATE_RUN_NAME = "{}-0"


class RunStarter:
    """Does the next step towards the next run."""

    def __init__(self, cache: OwnerCache, run_control: RunControl, inputs_checker: InputsChecker) -> None:
        self._cache = cache
        self._run_control = run_control
        self._inputs_checker = inputs_checker

    def check_template(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> Stall | None:
        """Return why no FineTuneJob would be created from the template, before the first one is due."""
        name = _TEMPLATE_RUN_NAME.format(request.key.name)
        run = _build_run(request, status, Due(Trigger.REQUEST, parse_time(request.now)), name)
        refusal = self._run_control.check(build_scheduled_run(request.with_status(status), run))
        return _build_stall(refusal) if refusal else None

    async def start(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, timetable: Timetable | None
    ) -> Step:
        """Create the FineTuneJob that is recorded, or record the one that is due."""
        pending = runs.find_pending_run(status)
        if pending is None:
            return await self._start_due_run(request, status, timetable)
        created = await self._create(request, status, pending)
        if created.stall is None:
            return created
        replaced = await self._start_due_run(request, status, timetable)
        if replaced.requeue_after is None:
            return replaced._replace(stall=created.stall, requeue_after=REFUSED_RETRY_SECONDS)
        return replaced._replace(stall=created.stall)

    async def _create(self, request: ScheduleRequest, status: FineTuneScheduleStatus, run: ScheduledRun) -> Step:
        """Create the FineTuneJob of a recorded run, if an earlier operator has not done so."""
        if run.name not in map(get_name, request.children):
            updated, must_wait = _update_pending_run(request, status, run), champions.is_decision_pending(status)
            # The cache may not show yet what an earlier attempt without a response has created.
            if (updated != run or must_wait) and not await self._exists(request, run):
                return Step(status) if must_wait else Step(runs.replace_run(status, updated), AT_ONCE)
            created = await self._run_control.create(build_scheduled_run(request.with_status(status), run))
            if isinstance(created, Refusal):
                return Step(status, stall=_build_stall(created))
            self._cache.children.update(self._cache.get_owner_key(created), created)
        message = f"Created FineTuneJob {run.name} ({run.trigger}, {run.scheduled_time})."
        event = EventContent("Normal", ScheduleEventReason.RUN_CREATED, message)
        return Step(runs.replace_run(status, run.model_copy(update={"created": True})), AT_ONCE, (event,))

    async def _exists(self, request: ScheduleRequest, run: ScheduledRun) -> bool:
        stored = await self._run_control.read(request.key.namespace, run.name)
        return stored is not None and is_controlled_by(stored, request.schedule.metadata.uid)

    async def _start_due_run(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, timetable: Timetable | None
    ) -> Step:
        now = parse_time(request.now)
        missed = _find_missed_slots(request, status, timetable, now)
        if missed.expired:
            return _miss_slot(status, missed.expired)
        due = triggers.find_due_run(request.schedule.spec, status, missed.due, now)
        if due is None or not runs.can_add_run(status) or champions.is_decision_pending(status):
            return Step(status)
        if runs.build_run_name(request.key.name, due.time) in {run.name for run in status.runs}:
            return _join_run_of_same_minute(status, due)
        active = runs.list_active_names(status, request.children)
        is_forbidden = request.schedule.spec.concurrency_policy == "Forbid" or due.trigger is Trigger.DATA_CHANGE
        if active and is_forbidden:
            return Step(status)  # the watch reports their end
        checked = await self._check_inputs(request, status, due)
        if checked.requeue_after is not None:
            return checked
        if active and request.schedule.spec.concurrency_policy == "Replace":
            return Step(status, events=await self._cancel_active_runs(request))
        return self._record(request, status, due, timetable)

    async def _check_inputs(self, request: ScheduleRequest, status: FineTuneScheduleStatus, due: Due) -> Step:
        """Skip a slot whose inputs and template are those of the last complete run. A requeue means: no run now."""
        last = runs.find_last_complete_run(status)
        if last is None or due.trigger is not Trigger.SCHEDULE:
            return Step(status)
        if last.template_hash != runs.compute_template_hash(request.schedule.spec):
            return Step(status)
        check = status.inputs
        if check is None or check.run != last.name or parse_time(check.time) < due.time:
            return await self._inputs_checker.check(request, status)
        if not check.unchanged:  # or the check has failed: the run reports its own errors
            return Step(status)
        message = f"No run for {format_time(due.time)}. {check.message}"
        event = EventContent("Normal", ScheduleEventReason.RUN_SKIPPED, message)
        return Step(triggers.mark_handled(status, due), AT_ONCE, (event,))

    async def _cancel_active_runs(self, request: ScheduleRequest) -> tuple[EventContent, ...]:
        """Cancel the active runs. The next one is recorded when the watch has reported their end."""
        events = []
        for child in request.children:
            if is_finished(child) or child["spec"].get("cancel"):
                continue
            cancelled = await self._run_control.patch(child, {"cancel": True})
            self._cache.children.update(self._cache.get_owner_key(cancelled), cancelled)
            message = f"Cancelled FineTuneJob {get_name(child)}, because the next run is due."
            events.append(EventContent("Normal", ScheduleEventReason.RUN_REPLACED, message))
        return tuple(events)

    def _record(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, due: Due, timetable: Timetable | None
    ) -> Step:
        name = runs.build_run_name(request.key.name, due.time)
        recorded = runs.add_run(status, _build_run(request, status, due, name))
        events = _warn_of_missed_slots(request, status, due, timetable)
        return Step(triggers.mark_handled(recorded, due), AT_ONCE, events)


def _build_run(request: ScheduleRequest, status: FineTuneScheduleStatus, due: Due, name: str) -> ScheduledRun:
    run = ScheduledRun(
        name=name,
        trigger=due.trigger,
        scheduled_time=format_time(due.time),
        template_hash=runs.compute_template_hash(request.schedule.spec),
    )
    return add_champion(run, request.with_status(status))


def _update_pending_run(request: ScheduleRequest, status: FineTuneScheduleStatus, run: ScheduledRun) -> ScheduledRun:
    """Return a run that does not exist yet with the template and the champion of now."""
    plain = run.model_copy(
        update={
            "template_hash": runs.compute_template_hash(request.schedule.spec),
            "champion": None,
            "champion_digest": None,
        }
    )
    return add_champion(plain, request.with_status(status))


def _join_run_of_same_minute(status: FineTuneScheduleStatus, due: Due) -> Step:
    """Two triggers of one minute are one run. A data change waits for the next minute, because nothing records it."""
    if due.trigger is Trigger.DATA_CHANGE:
        return Step(status, _SECONDS_PER_MINUTE - due.time.timestamp() % _SECONDS_PER_MINUTE)
    return Step(triggers.mark_handled(status, due), AT_ONCE)


def _get_handled_until(request: ScheduleRequest, status: FineTuneScheduleStatus) -> datetime:
    """Return the time up to which all slots are handled: at first, when the schedule was created, as CronJob does."""
    return parse_time(status.last_schedule_time or request.schedule.metadata.creation_timestamp or request.now)


def _find_missed_slots(
    request: ScheduleRequest, status: FineTuneScheduleStatus, timetable: Timetable | None, now: datetime
) -> slots.MissedSlots:
    if timetable is None:
        return slots.MissedSlots()
    deadline = request.schedule.spec.starting_deadline_seconds
    return slots.find_missed_slots(timetable, _get_handled_until(request, status), now, deadline)


def _miss_slot(status: FineTuneScheduleStatus, slot: datetime) -> Step:
    time = format_time(slot)
    message = f"The run of {time} could not start within spec.startingDeadlineSeconds and is left out."
    event = EventContent("Warning", ScheduleEventReason.MISSED_SCHEDULE, message)
    return Step(status.model_copy(update={"last_schedule_time": time}), AT_ONCE, (event,))


def _warn_of_missed_slots(
    request: ScheduleRequest, status: FineTuneScheduleStatus, due: Due, timetable: Timetable | None
) -> tuple[EventContent, ...]:
    since = _get_handled_until(request, status)
    if due.slot is None or timetable is None or not slots.has_too_many_missed_slots(timetable, since, due.slot):
        return ()
    message = (
        f"More than {slots.MAX_MISSED_SLOTS} times of spec.schedule have passed since {format_time(since)}; only the "
        "last one gets a run. Set spec.startingDeadlineSeconds, or check the clock of the cluster."
    )
    return (EventContent("Warning", ScheduleEventReason.TOO_MANY_MISSED_TIMES, message),)


def _build_stall(refusal: Refusal) -> Stall:
    """Return the refusal of a FineTuneJob with the paths of the schedule's template."""
    return Stall(_REASONS[refusal.kind], _SPEC_PATH.sub("spec.template.spec.", refusal.message))
