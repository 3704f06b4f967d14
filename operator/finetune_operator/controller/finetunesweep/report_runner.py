"""Has the trials of a FineTuneSweep compared by a task pod, which writes the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from finetune_operator.api.sweep import SWEEP_KIND, FineTuneSweep, SweepReason, TrialStatus
from finetune_operator.controller.finetunesweep.request import SweepRequest
from finetune_operator.controller.task_runner import TaskRunner
from finetune_operator.resources.child import parse_child
from finetune_operator.resources.owner import build_owner_reference
from finetune_operator.resources.task_job import Task, TaskKind, get_task_storage
from finetune_operator.resources.trial import build_trial
from finetune_operator.settings import Settings
from finetune_operator.status.sweeps.ranking import rank_configurations
from finetune_operator.status.sweeps.sweep_state import ReportState
from finetune_operator.status.sweeps.sweep_status import count_report_hours
from finetune_trainer.contract import SweepReportTask, TaskConfig, TrialRow

_LAST_RETRY_HOUR = 2
"""A report that fails is tried again after one hour and after two."""


class ReportRunner:
    """Runs the task of a report and reads its outcome."""

    def __init__(self, task_runner: TaskRunner, settings: Settings) -> None:
        self._task_runner = task_runner
        self._settings = settings

    async def run(self, request: SweepRequest, sweep: FineTuneSweep, rows: Sequence[TrialStatus]) -> ReportState:
        """Return the state of the report, and have it written if that has not begun.

        The first call only announces it: then the rows that it is about, and the time of the first error, are stored.
        Raises `ApiError` or one of `CONNECTION_ERRORS` if a retry may help.
        """
        if request.previous_status.reason not in (SweepReason.REPORTING, SweepReason.REPORT_FAILED):
            return ReportState()
        hours = count_report_hours(request.previous_status, request.now)
        access = parse_child(build_trial(sweep, request.trials[0]))
        config = TaskConfig(
            storage=get_task_storage(access, self._settings), sweep_report=_build_report_task(sweep, rows)
        )
        state = await self._task_runner.run(_build_task(sweep, config, hours), access)
        if state.is_pending:
            return ReportState()
        if state.outcome and state.outcome.sweep_report:
            return ReportState(report=state.outcome.sweep_report)
        return ReportState(
            error=state.error or "the task pod reported no comparison", is_last=hours >= _LAST_RETRY_HOUR
        )


def _build_report_task(sweep: FineTuneSweep, rows: Sequence[TrialStatus]) -> SweepReportTask:
    metric = sweep.spec.objective.metric
    return SweepReportTask(
        output_uri=sweep.spec.output.uri,
        sweep=f"{sweep.metadata.namespace}/{sweep.metadata.name}",
        objective=metric,
        trials=[TrialRow.model_validate(row.model_dump(exclude={"created"})) for row in rows],
        ranking=[ranked.number for ranked in rank_configurations(rows, metric)],
    )


def _build_task(sweep: FineTuneSweep, config: TaskConfig, hours: int) -> Task:
    """Return the task. It is another one an hour after an error, so that a new Job is created."""
    text = json.dumps(config.to_json(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Task(
        kind=TaskKind.REPORT,
        config=config,
        owner_name=sweep.metadata.name,
        owner_reference=build_owner_reference(sweep.metadata, SWEEP_KIND),
        identity=f"{sweep.metadata.uid}/{digest}/{hours}",
    )
