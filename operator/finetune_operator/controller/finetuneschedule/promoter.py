"""Decides which run of a FineTuneSchedule is the champion, and has the alias and the report written."""

from __future__ import annotations

import logging
from typing import NamedTuple

from finetune_operator.api.schedule import (
    Champion,
    FineTuneScheduleStatus,
    PendingPromotion,
    ScheduledRun,
    ScheduleEventReason,
    ScheduleReason,
)
from finetune_operator.api.status import Phase
from finetune_operator.controller.finetuneschedule.request import ScheduleRequest
from finetune_operator.controller.run_control import RunControl
from finetune_operator.controller.task_runner import TASK_CHECK_SECONDS, TaskRunner
from finetune_operator.observed.complete_run import CompleteRun, read_complete_run
from finetune_operator.observed.objects import is_controlled_by
from finetune_operator.resources.promotion_task import build_promote_task, build_report_task
from finetune_operator.resources.scheduled_run import build_template_run
from finetune_operator.status.events import EventContent
from finetune_operator.status.schedules import champions
from finetune_operator.status.schedules.promoted_condition import update_promoted_condition
from finetune_operator.status.schedules.promotion import Decision, decide, explain_missing_result
from finetune_trainer.contract import Reason

log = logging.getLogger(__name__)

_FIND_CHAMPION_SECONDS = 60.0
"""Seconds until `spec.champion.run` is looked for again. It may be a FineTuneJob that the schedule does not own."""
_NEXT_STEP_SECONDS = 0.0


class PromotionResult(NamedTuple):
    """The status with the decisions, and when the next reconcile is due."""

    status: FineTuneScheduleStatus
    requeue_after: float | None = None
    """Seconds until the next reconcile, or None if only events need one."""
    stalled: tuple[ScheduleReason, str] | None = None
    """Reason and message of the condition Stalled, if a person must correct `spec.champion`."""
    events: tuple[EventContent, ...] = ()
    """Events to record once the status is stored: `NotPromoted` for each complete run that is not promoted,
    and `ReportFailed`. Changes of the condition Promoted are not among them."""


class _Pin(NamedTuple):
    """What `spec.champion.run` sets: a champion, or a sentence why there is none, or neither if the field is unset."""

    champion: Champion | None = None
    problem: str = ""


class Promoter:
    """Decides about complete runs. It changes the fields of the status that concern champions, and no other ones."""

    def __init__(self, run_control: RunControl, task_runner: TaskRunner) -> None:
        self._run_control = run_control
        self._task_runner = task_runner

    async def promote(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> PromotionResult:
        """Decide about the runs that have completed.

        Each call does one step. Its status must be stored before the next call, whose `request` has the stored one:
        tasks are started only for what is stored. Raises `ApiError` or one of `CONNECTION_ERRORS` if a retry may help.
        """
        pin = await self._find_pin(request, status)
        result = await self._take_step(request, status, pin.champion)
        status = update_promoted_condition(request.schedule, result.status, request.now)
        if pin.problem:
            stalled = (ScheduleReason.CHAMPION_NOT_FOUND, pin.problem)
            return _limit_delay(result._replace(status=status, stalled=stalled), _FIND_CHAMPION_SECONDS)
        problem = champions.find_champion_problem(status)
        return result._replace(status=status, stalled=(ScheduleReason.CHAMPION_UNUSABLE, problem) if problem else None)

    async def _take_step(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, pin: Champion | None
    ) -> PromotionResult:
        if status.promoting and not status.promoting.failure:
            return await self._write_alias(request, status, status.promoting)
        if run := champions.find_next_undecided(status):
            return await self._decide(request, status, run)
        target = champions.find_target(request.schedule, status, pin, request.now)
        if target.champion is None:
            return await self._write_report(request, champions.give_up_pin(status))
        if target.due_in > 0:
            return _limit_delay(await self._write_report(request, status), target.due_in)
        status = champions.begin_promotion(request.schedule, status, target.champion, request.now)
        return PromotionResult(status, _NEXT_STEP_SECONDS)

    async def _find_pin(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> _Pin:
        """Return the champion that `spec.champion.run` sets: an earlier champion, a run, or any FineTuneJob."""
        if request.schedule.spec.champion is None:
            return _Pin()
        name = request.schedule.spec.champion.run
        if known := champions.find_known_champion(status, name, request.now):
            return _Pin(known)
        body = await self._run_control.read(request.key.namespace, name)
        if body and (complete := read_complete_run(body)):
            return _Pin(champions.build_champion(complete, ScheduleReason.PINNED, request.now))
        found = f"The FineTuneJob {name} has no result" if body else f"There is no FineTuneJob {name}"
        message = f"{found}, and it is neither in status.runs nor in status.champions. Correct or remove the field."
        return _Pin(problem=f"spec.champion.run: {message}")

    async def _decide(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, run: ScheduledRun
    ) -> PromotionResult:
        """Decide about one run. If it is to be promoted, its decision is recorded when the alias is written."""
        complete = await self._read_run(request, run) if run.phase == Phase.COMPLETE else None
        if complete is None:
            decision = explain_missing_result(run, status.champion)
        else:
            decision = decide(request.schedule.spec, run, complete, status.champion)
        is_new = decision.reason is ScheduleReason.PROMOTED and not _is_champion(status, run)
        if is_new and status.promoting:
            decision = _wait_for_promotion(decision, status.promoting)
        elif is_new and complete:
            status = champions.record_promoted_run(status, run, decision, complete)
            champion = champions.build_champion(complete, ScheduleReason.PROMOTED, request.now)
            return PromotionResult(
                champions.begin_promotion(request.schedule, status, champion, request.now), _NEXT_STEP_SECONDS
            )
        status = champions.record_decision(status, run, decision, complete)
        return PromotionResult(status, _NEXT_STEP_SECONDS, events=_build_events(run, decision))

    async def _read_run(self, request: ScheduleRequest, run: ScheduledRun) -> CompleteRun | None:
        """Return the result of a run, or None if its FineTuneJob was deleted or replaced."""
        body = await self._run_control.read(request.key.namespace, run.name)
        if body is None or not is_controlled_by(body, request.schedule.metadata.uid):
            return None
        complete = read_complete_run(body)
        return complete if complete and complete.result.digest == run.digest else None

    async def _write_alias(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, pending: PendingPromotion
    ) -> PromotionResult:
        stored = request.schedule.status
        if stored is None or stored.promoting != pending:
            return PromotionResult(status, _NEXT_STEP_SECONDS)
        if pending.alias_uri is None:
            return PromotionResult(champions.finish_promotion(status, pending), _NEXT_STEP_SECONDS)
        task = build_promote_task(request.schedule, pending.alias_uri, pending)
        state = await self._task_runner.run(task, build_template_run(request.schedule))
        if state.is_pending:
            return PromotionResult(status, TASK_CHECK_SECONDS)
        if state.outcome:
            log.info("the champion is %s", pending.champion.run)
            return PromotionResult(champions.finish_promotion(status, pending), _NEXT_STEP_SECONDS)
        is_conflict = state.reason is Reason.ALIAS_CONFLICT
        reason = ScheduleReason.ALIAS_CONFLICT if is_conflict else ScheduleReason.PROMOTION_FAILED
        return PromotionResult(champions.fail_promotion(status, pending, reason, state.error), _NEXT_STEP_SECONDS)

    async def _write_report(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> PromotionResult:
        """Have the decided runs written as a page, once for each state of them. It only informs."""
        report = build_report_task(request.schedule, status)
        if report is None or report[1] == status.report_digest:
            return PromotionResult(status)
        task, digest = report
        stored = request.schedule.status
        if stored is None or (stored.runs, stored.champion) != (status.runs, status.champion):
            return PromotionResult(status, _NEXT_STEP_SECONDS)
        state = await self._task_runner.run(task, build_template_run(request.schedule))
        if state.is_pending:
            return PromotionResult(status, TASK_CHECK_SECONDS)
        written = state.outcome.schedule_report if state.outcome else None
        report_uri = written.report_uri if written else status.report_uri
        status = status.model_copy(update={"report_digest": digest, "report_uri": report_uri})
        if not state.error:
            return PromotionResult(status)
        log.warning("the report could not be written: %s", state.error)
        event = EventContent("Warning", ScheduleEventReason.REPORT_FAILED, state.error)
        return PromotionResult(status, events=(event,))


def _limit_delay(result: PromotionResult, seconds: float) -> PromotionResult:
    """Return the result with a reconcile after that time, or earlier."""
    delay = seconds if result.requeue_after is None else min(seconds, result.requeue_after)
    return result._replace(requeue_after=delay)


def _is_champion(status: FineTuneScheduleStatus, run: ScheduledRun) -> bool:
    return status.champion is not None and (status.champion.run, status.champion.digest) == (run.name, run.digest)


def _wait_for_promotion(decision: Decision, pending: PendingPromotion) -> Decision:
    """Return the decision about a run that could be promoted if the alias could be written."""
    message = f"The alias could not be changed to {pending.champion.run} before. By the rules: {decision.message}"
    return decision._replace(reason=ScheduleReason(pending.failure or ScheduleReason.PROMOTING), message=message)


def _build_events(run: ScheduledRun, decision: Decision) -> tuple[EventContent, ...]:
    if run.phase != Phase.COMPLETE or decision.reason is ScheduleReason.PROMOTED:
        return ()
    message = f"Run {run.name} did not become the champion: {decision.reason}: {decision.message}"
    return (EventContent("Normal", ScheduleEventReason.NOT_PROMOTED, message),)
