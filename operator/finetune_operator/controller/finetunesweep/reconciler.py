"""Reconcile one FineTuneSweep: observe its trials, decide, create trials, patch the status, change trials, requeue.

The status is stored before any FineTuneJob is changed, so that an operator that is killed in between decides the same
again.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import NamedTuple

from finetune_operator.api.objects import ObjectKey
from finetune_operator.api.sweep import SWEEP_KIND, FineTuneSweep, FineTuneSweepStatus, TrialStatus
from finetune_operator.controller.finetunejob.request import UnreadableObjectError
from finetune_operator.controller.finetunesweep.report_runner import ReportRunner
from finetune_operator.controller.finetunesweep.request import SweepRequest, build_sweep_request
from finetune_operator.controller.finetunesweep.trial_control import ObservedTrials, TrialControl
from finetune_operator.controller.task_runner import TASK_CHECK_SECONDS
from finetune_operator.kube.client import FINETUNESWEEPS, KubeClient
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed.objects import is_being_deleted
from finetune_operator.status.events import EventContent, build_owner_event, create_merge_patch
from finetune_operator.status.sweeps import sweep_state, trials
from finetune_operator.status.sweeps.decisions import decide
from finetune_operator.status.sweeps.sweep_events import list_sweep_events
from finetune_operator.status.sweeps.sweep_state import SweepFacts, SweepProblem
from finetune_operator.status.sweeps.sweep_status import (
    build_invalid_status,
    compute_sweep_status,
    is_terminal,
)

log = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0
"""Seconds until a trial that was refused, or a report that has failed, is retried."""
_REQUEUE_AFTER_WRITE = 1.0
"""Seconds until the next reconcile after a FineTuneJob was written. The response also contains changes by others, and
no watch event reports them again."""


class CreationResult(NamedTuple):
    """The trials after the creation of some."""

    observed: ObservedTrials
    problem: SweepProblem | None = None


class SweepReconciler:
    """Brings the cluster to the desired state of one FineTuneSweep. It is level-based: only the current state
    matters."""

    def __init__(
        self, cache: OwnerCache, client: KubeClient, trial_control: TrialControl, report_runner: ReportRunner
    ) -> None:
        self._cache = cache
        self._client = client
        self._trial_control = trial_control
        self._report_runner = report_runner

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile once. Return the seconds until the next reconcile, or None if only events need one."""
        request = self._get(key)
        if request is None:
            return None
        if isinstance(request.sweep, SweepProblem):
            status = build_invalid_status(request.meta, request.previous_status, request.sweep, request.now)
            await self._publish_status(request, status)
            return None
        observed = await self._trial_control.observe(request, request.sweep)
        if not request.previous_status.conditions:  # all trials are in the status before the first one is created
            await self._publish_facts(request, SweepFacts(request.sweep.spec, observed.rows, observed.states))
            return 0.0
        return await self._reconcile_trials(request, request.sweep, observed)

    async def _reconcile_trials(
        self, request: SweepRequest, sweep: FineTuneSweep, observed: ObservedTrials
    ) -> float | None:
        spec = sweep.spec
        decision = decide(spec, request.previous_status, observed.rows, observed.states)
        plan, observed = decision.plan, ObservedTrials(decision.rows, observed.children)
        created = await self._create_trials(request, sweep, observed, plan.creations)
        rows = created.observed.rows
        must_report = sweep_state.must_report(spec, rows) and not is_terminal(request.previous_status)
        report = await self._report_runner.run(request, sweep, rows) if must_report else None
        facts = SweepFacts(
            spec=spec,
            rows=rows,
            children=created.observed.states,
            step=decision.step,
            compared_at_step=decision.compared_at_step,
            problem=created.problem,
            report=report,
        )
        if not await self._publish_facts(request, facts):
            return None
        await self._trial_control.patch(observed.children, plan.patches)
        return _compute_requeue_after(request, facts, has_written=bool(plan.creations or plan.patches))

    def _get(self, key: ObjectKey) -> SweepRequest | None:
        """Return the FineTuneSweep, or None if it is deleted, being deleted or unreadable. Its FineTuneJobs are deleted
        with it."""
        body = self._cache.get_owner(key)
        if body is None or is_being_deleted(body):
            return None
        try:
            return build_sweep_request(key, body, self._client.now())
        except UnreadableObjectError as error:
            log.warning(
                "the FineTuneSweep was written by a newer version and is left alone until the operator is upgraded: %s",
                error,
            )
            return None

    async def _create_trials(
        self, request: SweepRequest, sweep: FineTuneSweep, observed: ObservedTrials, creations: list[TrialStatus]
    ) -> CreationResult:
        """Create trials, the first one only if no trial is refused. Stop at one that may be created later."""
        is_first = not any(row.created or trials.is_ended(row) for row in observed.rows)
        if creations and is_first and (problem := await self._trial_control.find_problem(request, sweep)):
            return CreationResult(observed, problem)
        rows, children = {row.name: row for row in observed.rows}, dict(observed.children)
        problem = None
        for row in creations:
            created = await self._trial_control.create(request, sweep, row)
            if not isinstance(created, SweepProblem):
                children[row.name] = created
                rows[row.name] = trials.update_row(row, trials.read_child(created), None)
            elif created.is_permanent:
                rows[row.name] = trials.mark_refused(row, created.reason)
                await self._record_event(request, EventContent("Warning", created.reason, created.message))
            else:
                problem = created
                break
        return CreationResult(ObservedTrials(list(rows.values()), children), problem)

    async def _publish_facts(self, request: SweepRequest, facts: SweepFacts) -> bool:
        status = compute_sweep_status(request.meta, request.previous_status, facts, request.now)
        return await self._publish_status(request, status)

    async def _publish_status(self, request: SweepRequest, status: FineTuneSweepStatus) -> bool:
        """Store the status if it differs, and record Events. Return False if the FineTuneSweep was deleted."""
        patch = create_merge_patch(request.previous_status.to_json(), status.to_json())
        if not patch:
            return True
        body = {"metadata": {"resourceVersion": request.body["metadata"]["resourceVersion"]}, "status": patch}
        try:
            stored = await self._client.patch_status(FINETUNESWEEPS, request.key.namespace, request.key.name, body)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        self._cache.owners.update(request.key, stored)
        for content in list_sweep_events(request.previous_status, status):
            await self._record_event(request, content)
        return True

    async def _record_event(self, request: SweepRequest, content: EventContent) -> None:
        log.info("%s: %s", content.reason, content.message)
        try:
            await self._client.create_event(build_owner_event(SWEEP_KIND, request.meta, content, request.now))
        except (ApiError, *CONNECTION_ERRORS) as error:  # the status contains the same information
            log.warning("could not record the Event: %s: %s", type(error).__name__, error)


def _compute_requeue_after(request: SweepRequest, facts: SweepFacts, *, has_written: bool) -> float | None:
    if facts.problem and facts.problem.is_permanent:
        return None
    if facts.report and facts.report.error and not facts.report.is_last:
        return _RETRY_SECONDS
    if facts.report and not facts.report.report and not facts.report.error:
        return TASK_CHECK_SECONDS
    if has_written and not facts.problem:
        return _REQUEUE_AFTER_WRITE
    return _RETRY_SECONDS if facts.problem else None
