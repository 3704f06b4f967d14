"""The trials of a FineTuneSweep: their list, what is read of their FineTuneJobs, and their rows in the status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api.objects import Body
from finetune_operator.api.status import ConditionType, OperatorReason
from finetune_operator.api.sweep import FineTuneSweepSpec, ResultUri, TrialStatus
from finetune_operator.observed.objects import find_true_condition
from finetune_trainer.contract import (
    Model,
    Result,
    ResultDigest,
    StepResult,
    Trial,
    list_configurations,
    list_trials,
)

COMPLETE, FAILED, CANCELLED = "Complete", "Failed", "Cancelled"
DELETED = "Deleted"
"""Phase of a trial whose FineTuneJob somebody has deleted."""
TRIAL_DELETED = "TrialDeleted"
_ENDED_PHASES = frozenset({COMPLETE, FAILED, CANCELLED, DELETED})
_FAILED_PHASES = frozenset({FAILED, DELETED})
_PHASE_CONDITIONS = (
    ConditionType.COMPLETE,
    ConditionType.FAILED,
    ConditionType.CANCELLED,
    ConditionType.SUSPENDED,
    ConditionType.RUNNING,
)
_PENDING = "Pending"
_MAX_STEPS = 8  # as many as halving.atSteps


class ChildState(NamedTuple):
    """What a sweep reads of the FineTuneJob of a trial."""

    phase: str
    """The phase by the conditions."""
    reason: str | None = None
    gpu_seconds: int | None = None
    step_result: StepResult | None = None
    suspend: bool = False
    suspend_at_step: int | None = None
    cancel: bool = False

    @property
    def is_ended(self) -> bool:
        """Whether the run has completed, failed or was cancelled."""
        return self.phase in _ENDED_PHASES

    @property
    def is_active(self) -> bool:
        """Whether the run has or wants GPUs.

        A run that was resumed a moment ago still has the condition Suspended. One that has used its own budget has no
        other sign of it than the reason.
        """
        if self.is_ended:
            return False
        if self.phase != ConditionType.SUSPENDED:
            return True
        return self._may_run and not self.is_out_of_budget

    @property
    def is_out_of_budget(self) -> bool:
        """Whether the run is suspended because it has used its own budget."""
        return self.phase == ConditionType.SUSPENDED and self.reason == OperatorReason.BUDGET_EXHAUSTED

    @property
    def _may_run(self) -> bool:
        """Whether the spec lets the run continue."""
        reached_step = self.step_result.step if self.step_result else 0
        has_steps_left = self.suspend_at_step is None or self.suspend_at_step > reached_step
        return has_steps_left and not self.suspend and not self.cancel


class TrialResult(Model):
    """What a sweep reads of the result of a complete trial."""

    value: float | None = None
    """The objective. It is unset if the run has not measured it."""
    adapter_uri: ResultUri | None = None
    digest: ResultDigest | None = None


def list_sweep_trials(spec: FineTuneSweepSpec) -> list[Trial]:
    """Return the trials, which follow from the immutable fields of the spec. Raises `ValueError` for a range in a
    grid."""
    configurations = list_configurations(spec.parameters, spec.search)
    return list_trials(configurations, spec.seeds, spec.template.spec.training.seed)


def get_trial_name(sweep_name: str, trial: Trial) -> str:
    """Return the name of the FineTuneJob of a trial."""
    return f"{sweep_name}-{trial.number}"


def build_rows(sweep_name: str, trials: Sequence[Trial], stored_rows: Sequence[TrialStatus]) -> list[TrialStatus]:
    """Return a row for each trial: the stored one, or one that only describes it."""
    stored = {row.name: row for row in stored_rows}
    new_rows = [
        TrialStatus(
            name=get_trial_name(sweep_name, trial),
            configuration=trial.configuration,
            parameters=trial.values,
            seed=trial.seed,
        )
        for trial in trials
    ]
    return [stored.get(row.name, row) for row in new_rows]


def read_child(body: Body) -> ChildState:
    """Return what a sweep reads of a FineTuneJob."""
    spec, status = body["spec"], body.get("status", {})
    phase = next((each.value for each in _PHASE_CONDITIONS if find_true_condition(body, each)), _PENDING)
    return ChildState(
        phase=phase,
        reason=status.get("reason"),
        gpu_seconds=status.get("gpuSeconds"),
        step_result=_read_step_result(status),
        suspend=spec.get("suspend", False),
        suspend_at_step=spec.get("suspendAtStep"),
        cancel=spec.get("cancel", False),
    )


def read_result(body: Body, metric: str) -> TrialResult:
    """Return the result of a stored, complete FineTuneJob. It is empty if it is not valid: a trainer reports it."""
    try:
        result = Result.model_validate(body.get("status", {}).get("result"), extra="ignore")
        return TrialResult(value=result.metrics.get(metric), adapter_uri=result.adapter_uri, digest=result.digest)
    except ValidationError:
        return TrialResult()


def is_ended(row: TrialStatus) -> bool:
    """Return whether a trial has ended. Its row never changes again."""
    return row.phase in _ENDED_PHASES


def is_cut(row: TrialStatus) -> bool:
    """Return whether halving has ended a trial."""
    return row.cut_at_step is not None


def is_failed(row: TrialStatus) -> bool:
    """Return whether a trial failed or was deleted. One that halving has ended counts as cut, whatever follows."""
    return row.phase in _FAILED_PHASES and not is_cut(row)


def update_row(row: TrialStatus, child: ChildState, result: TrialResult | None) -> TrialStatus:
    """Return the row of a trial whose FineTuneJob exists. A complete one ends with its result."""
    if is_ended(row) or (child.phase == COMPLETE and result is None):
        return row
    changes = {
        "created": True,
        "phase": child.phase,
        "reason": child.reason,
        "gpu_seconds": child.gpu_seconds,
        "steps": _add_step(row.steps, child.step_result),
    }
    return row.model_copy(update=changes | (result.model_dump() if result else {}))


def mark_deleted(row: TrialStatus) -> TrialStatus:
    """Return the row of a trial whose FineTuneJob is gone."""
    return row.model_copy(update={"phase": DELETED, "reason": TRIAL_DELETED})


def mark_refused(row: TrialStatus, reason: str) -> TrialStatus:
    """Return the row of a trial whose FineTuneJob can never be created."""
    return row.model_copy(update={"phase": FAILED, "reason": reason})


def _read_step_result(status: Body) -> StepResult | None:
    if "stepResult" not in status:
        return None
    try:
        return StepResult.model_validate(status["stepResult"], extra="ignore")
    except ValidationError:
        return None


def _add_step(steps: Sequence[StepResult], new: StepResult | None) -> list[StepResult]:
    """Return the last results with a new one. A run that went back to an earlier checkpoint reports a step again."""
    if new is None or any(known.step >= new.step for known in steps):
        return [*steps]
    return [*steps, new][-_MAX_STEPS:]
