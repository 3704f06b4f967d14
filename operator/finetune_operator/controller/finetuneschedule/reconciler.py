"""Reconcile one FineTuneSchedule: record ended runs, decide about the champion, take a step towards the next run, store
the status, delete old FineTuneJobs, requeue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from http import HTTPStatus

from pydantic import ValidationError

from finetune_operator.api import ObjectMeta
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.api.schedule import (
    SCHEDULE_KIND,
    FineTuneScheduleSpec,
    FineTuneScheduleStatus,
    ScheduledRun,
    ScheduleEventReason,
    ScheduleReason,
)
from finetune_operator.controller.finetuneschedule.inputs_checker import InputsChecker
from finetune_operator.controller.finetuneschedule.promoter import Promoter
from finetune_operator.controller.finetuneschedule.request import (
    ScheduleRequest,
    build_request,
    find_invalid_time,
    read_status,
)
from finetune_operator.controller.finetuneschedule.run_starter import RunStarter
from finetune_operator.controller.finetuneschedule.step import AT_ONCE, Step
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.controller.run_control import RunControl
from finetune_operator.controller.task_runner import TaskRunner
from finetune_operator.kube.client import FINETUNESCHEDULES, KubeClient
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed.objects import get_name, is_being_deleted, is_controlled_by, is_finished
from finetune_operator.settings import Settings
from finetune_operator.status import events
from finetune_operator.status.events import EventContent
from finetune_operator.status.schedules import runs, triggers
from finetune_operator.status.schedules.conditions import Stall, build_conditions, build_invalid_conditions
from finetune_operator.status.schedules.history import list_superfluous_runs
from finetune_operator.status.schedules.inputs import compute_next_check_time
from finetune_operator.status.schedules.notices import list_condition_events
from finetune_operator.status.schedules.slots import InvalidScheduleError, Timetable, parse_timetable
from finetune_operator.status.schedules.times import find_time, format_time, parse_time

log = logging.getLogger(__name__)

_MAX_ACTIVE_NAMES = 100


class ScheduleReconciler:
    """Brings the cluster to the desired state of one FineTuneSchedule. It is level-based: only the current state
    matters."""

    def __init__(
        self,
        cache: OwnerCache,
        client: KubeClient,
        settings: Settings,
        now: Callable[[], datetime],
        profile_store: ProfileStore,
    ) -> None:
        self._cache = cache
        self._client = client
        self._now = now
        self._run_control = RunControl(client, settings, profile_store)
        task_runner = TaskRunner(client, settings, profile_store)
        self._inputs_checker = InputsChecker(task_runner, settings)
        self._run_starter = RunStarter(cache, self._run_control, self._inputs_checker)
        self._promoter = Promoter(self._run_control, task_runner)

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile once. Return the seconds until the next reconcile, or None if only events need one."""
        body = self._cache.get_owner(key)
        if body is None or is_being_deleted(body):  # its FineTuneJobs are deleted by the garbage collector
            return None
        request = await self._read(key, body)
        if request is None:
            return None
        timetable, schedule_stall = _find_timetable(request.schedule.spec)
        step = await self._take_step(request, timetable)
        status = _complete_status(request, step.status, step.stall or schedule_stall, timetable)
        await self._publish(request, status, step.events)
        await self._delete_old_runs(request, status)
        return _compute_requeue(request, step, status, timetable)

    async def _read(self, key: ObjectKey, body: Body) -> ScheduleRequest | None:
        """Return the parsed schedule, or None if this version cannot read it."""
        try:
            request = build_request(key, body, self._cache.list_children(body), self._now())
            message = find_invalid_time(request.stored_status)
        except ValidationError as error:
            first = error.errors()[0]
            message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            if message is None:
                return request
        log.warning("this version of the operator cannot read the FineTuneSchedule, so it is left alone: %s", message)
        await self._report_invalid(body, message)
        return None

    async def _report_invalid(self, body: Body, message: str) -> None:
        """Set the condition Stalled, unless it is the status that cannot be read."""
        try:
            old = read_status(body)
        except ValidationError:
            return
        meta = ObjectMeta.model_validate(body["metadata"])
        conditions = build_invalid_conditions(old.conditions, message, meta.generation, format_time(self._now()))
        new = old.model_copy(update={"observed_generation": meta.generation, "conditions": conditions})
        await self._patch_status(body, events.create_merge_patch(old.to_json(), new.to_json()))

    async def _take_step(self, request: ScheduleRequest, timetable: Timetable | None) -> Step:
        recorded = await self._record_ended_runs(request)
        if recorded != request.stored_status:
            return Step(recorded, AT_ONCE)
        promotion = await self._promoter.promote(request, recorded)
        step = await self._advance(request, promotion.status, timetable)
        delays = [delay for delay in (step.requeue_after, promotion.requeue_after) if delay is not None]
        stall = step.stall or (Stall(*promotion.stalled) if promotion.stalled else None)
        return Step(step.status, min(delays, default=None), (*promotion.events, *step.events), stall)

    async def _record_ended_runs(self, request: ScheduleRequest) -> FineTuneScheduleStatus:
        """Return the status with the ends of runs. The cached FineTuneJobs have no results, so they are read."""
        status = request.stored_status
        children = {get_name(child): child for child in request.children}
        for run in runs.list_open_runs(status):
            if run.name not in children or is_finished(children[run.name]):
                status = runs.replace_run(status, await self._record_end(request, run))
        return status

    async def _record_end(self, request: ScheduleRequest, run: ScheduledRun) -> ScheduledRun:
        stored = await self._run_control.read(request.key.namespace, run.name)
        is_owned = stored is not None and is_controlled_by(stored, request.schedule.metadata.uid)
        return runs.record_end(run, stored if is_owned else None, request.now)

    async def _advance(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, timetable: Timetable | None
    ) -> Step:
        """Take a step towards the next run, or check the inputs."""
        if stall := self._run_starter.check_template(request, status):
            return Step(status, stall=stall)
        if request.schedule.spec.suspend:
            return Step(status)
        step = await self._run_starter.start(request, status, timetable)
        return step if step.requeue_after is not None else await self._check_inputs(request, step)

    async def _check_inputs(self, request: ScheduleRequest, step: Step) -> Step:
        """Check the inputs if the interval of `spec.onDataChange` has passed."""
        on_data_change = request.schedule.spec.on_data_change
        check_time = compute_next_check_time(on_data_change, step.status) if on_data_change else None
        if check_time is None or check_time > parse_time(request.now):
            return step
        checked = await self._inputs_checker.check(request, step.status)
        return checked._replace(events=step.events, stall=step.stall)

    async def _publish(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, contents: Iterable[EventContent]
    ) -> None:
        """Store the status if it differs, then record the Events."""
        old = request.stored_status
        await self._patch_status(request.body, events.create_merge_patch(old.to_json(), status.to_json()))
        for content in (*contents, *list_condition_events(old, status)):
            await self._record_event(request, content)

    async def _patch_status(self, body: Body, patch: Body) -> None:
        """Store a change of the status. Raises `ApiError` (409) if the stored object is newer than `body`."""
        if not patch:
            return
        meta = body["metadata"]
        request_body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
        try:
            stored = await self._client.patch_status(FINETUNESCHEDULES, meta["namespace"], meta["name"], request_body)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return  # the FineTuneSchedule was deleted
            raise
        self._cache.owners.update(self._cache.get_key(stored), stored)

    async def _delete_old_runs(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> None:
        """Delete the FineTuneJobs above the history limits, whose ends and decisions are stored."""
        for child in list_superfluous_runs(request.schedule.spec, status, request.children):
            await self._run_control.delete(child)
            self._cache.children.delete(child)
            message = (
                f"Deleted FineTuneJob {get_name(child)}, which is above the history limit. Its result stays in S3."
            )
            await self._record_event(request, EventContent("Normal", ScheduleEventReason.RUN_DELETED, message))

    async def _record_event(self, request: ScheduleRequest, content: EventContent) -> None:
        log.info("%s: %s", content.reason, content.message)
        event = events.build_owner_event(SCHEDULE_KIND, request.schedule.metadata, content, request.now)
        try:
            await self._client.create_event(event)
        except (ApiError, *CONNECTION_ERRORS) as error:  # the status contains the same information
            log.warning("could not record the Event: %s: %s", type(error).__name__, error)


def _find_timetable(spec: FineTuneScheduleSpec) -> tuple[Timetable | None, Stall | None]:
    """Return the times of the schedule, and what is wrong with its times. Other triggers work without them."""
    stall = None
    if spec.run_at and find_time(spec.run_at) is None:
        message = f"spec.runAt '{spec.run_at}' is not a time; write it as 2026-11-23T08:00:00Z."
        stall = Stall(ScheduleReason.INVALID_SCHEDULE, message)
    if spec.schedule is None:
        return None, stall
    try:
        return parse_timetable(spec.schedule, spec.time_zone), stall
    except InvalidScheduleError as error:
        return None, Stall(ScheduleReason.INVALID_SCHEDULE, f"{error}.")


def _complete_status(
    request: ScheduleRequest, status: FineTuneScheduleStatus, stall: Stall | None, timetable: Timetable | None
) -> FineTuneScheduleStatus:
    """Return the status with the fields that follow from the others."""
    is_timed = timetable is not None and not request.schedule.spec.suspend
    next_time = timetable.find_next(parse_time(request.now)) if timetable and is_timed else None
    changes = {
        "observed_generation": request.schedule.metadata.generation,
        "active": runs.list_active_names(status, request.children)[:_MAX_ACTIVE_NAMES],
        "next_schedule_time": format_time(next_time) if next_time else None,
        "conditions": build_conditions(request.schedule, status, stall, request.now),
    }
    return status.model_copy(update=changes)


def _compute_requeue(
    request: ScheduleRequest, step: Step, status: FineTuneScheduleStatus, timetable: Timetable | None
) -> float | None:
    now = parse_time(request.now)
    next_time = triggers.compute_next_time(request.schedule.spec, status, timetable, now)
    delays = [step.requeue_after, (next_time - now).total_seconds() if next_time else None]
    return min((delay for delay in delays if delay is not None), default=None)
