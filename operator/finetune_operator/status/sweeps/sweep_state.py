"""The state of a FineTuneSweep: what it does, and what its conditions say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from finetune_operator.api.sweep import FineTuneSweepSpec, FineTuneSweepStatus, SweepReason, TrialStatus
from finetune_operator.status.run_state import StateKind
from finetune_operator.status.sweeps.ranking import has_value, rank_configurations
from finetune_operator.status.sweeps.trials import COMPLETE, ChildState, is_ended, is_failed
from finetune_trainer.contract import SweepReport

_MAX_NAMES = 5


class SweepProblem(NamedTuple):
    """Why a trial or the whole sweep cannot start."""

    reason: SweepReason
    message: str
    is_permanent: bool
    """Whether a retry cannot help."""


class ReportState(NamedTuple):
    """The state of the task that compares the trials. It is pending if it has neither a report nor an error."""

    report: SweepReport | None = None
    error: str = ""
    is_last: bool = False
    """Whether a failed task is not tried again."""


class SweepFacts(NamedTuple):
    """What the state of a sweep follows from."""

    spec: FineTuneSweepSpec
    rows: Sequence[TrialStatus]
    children: dict[str, ChildState]
    """The FineTuneJobs that exist, by name."""
    step: int | None = None
    """The step of halving that the remaining trials train up to."""
    compared_at_step: int | None = None
    """The last step of halving at which trials were compared."""
    problem: SweepProblem | None = None
    report: ReportState | None = None
    """Unset unless all trials have ended."""

    @property
    def active_names(self) -> list[str]:
        """The trials that have or want GPUs."""
        return [row.name for row in self.rows if row.name in self.children and self.children[row.name].is_active]


class SweepState(NamedTuple):
    """The state of a sweep, with the reason and the message of its conditions."""

    kind: StateKind
    reason: SweepReason
    message: str


def has_too_many_failures(spec: FineTuneSweepSpec, rows: Sequence[TrialStatus]) -> bool:
    """Return whether more trials have failed than the sweep allows."""
    return sum(map(is_failed, rows)) > spec.max_failed


def is_budget_used(spec: FineTuneSweepSpec, gpu_seconds: int) -> bool:
    """Return whether the trials have used the budget of the sweep."""
    return spec.budget is not None and gpu_seconds >= spec.budget.gpu_seconds


def sum_gpu_seconds(rows: Sequence[TrialStatus]) -> int:
    """Return what all trials together have used."""
    return sum(row.gpu_seconds or 0 for row in rows)


def must_report(spec: FineTuneSweepSpec, rows: Sequence[TrialStatus]) -> bool:
    """Return whether all trials have ended and there is something to compare."""
    is_over = spec.cancel or has_too_many_failures(spec, rows) or not all(map(is_ended, rows))
    return not is_over and any(map(has_value, rows))


def compute_sweep_state(facts: SweepFacts, previous: FineTuneSweepStatus) -> SweepState:
    """Return the state of a sweep that has not ended.

    In this order: a cancelled sweep, too many failures, trials that have all ended, a trial that is refused, a sweep
    that is suspended or at the limit of its budget, trials under way.
    """
    if facts.spec.cancel:
        return _build_cancelled_state(facts)
    if has_too_many_failures(facts.spec, facts.rows):
        return SweepState(StateKind.FAILED, SweepReason.TOO_MANY_FAILED_TRIALS, _describe_failures(facts))
    if all(map(is_ended, facts.rows)):
        return _build_final_state(facts, previous)
    if facts.problem:
        return _build_problem_state(facts, facts.problem)
    return _build_stopped_state(facts) or _build_active_state(facts)


def _build_cancelled_state(facts: SweepFacts) -> SweepState:
    if any(not child.is_ended for child in facts.children.values()):
        message = "spec.cancel is set, and the trials are cancelled."
        return SweepState(StateKind.RUNNING, SweepReason.CANCELLING, message)
    message = "spec.cancel is set, and no trial is active. The results of complete trials stay in S3."
    return SweepState(StateKind.CANCELLED, SweepReason.CANCELLED, message)


def _describe_failures(facts: SweepFacts) -> str:
    failed = [row for row in facts.rows if is_failed(row)]
    return (
        f"{len(failed)} trials have failed, and spec.maxFailed is {facts.spec.max_failed}: {_describe_ends(failed)}. "
        "The others are cancelled. See the conditions of these FineTuneJobs, and create a new FineTuneSweep."
    )


def _describe_ends(rows: Sequence[TrialStatus]) -> str:
    """Name the first trials with the reason of each, such as `lr-1 (NonFiniteLoss)`."""
    texts = [f"{row.name} ({row.reason or row.phase})" for row in rows[:_MAX_NAMES]]
    return ", ".join(texts) + (f" and {len(rows) - _MAX_NAMES} more" if len(rows) > _MAX_NAMES else "")


def _build_final_state(facts: SweepFacts, previous: FineTuneSweepStatus) -> SweepState:
    report = facts.report
    if report is None:
        return _build_resultless_state(facts)
    if report.report or report.is_last:
        return SweepState(StateKind.COMPLETE, SweepReason.COMPLETED, _describe_best(facts, report))
    if report.error:
        message = f"The trials could not be compared, and it is tried again within an hour: {report.error}"
        return SweepState(StateKind.FINISHING, SweepReason.REPORT_FAILED, message)
    if previous.reason == SweepReason.REPORT_FAILED:  # so that the time of its condition stays that of the first error
        return SweepState(StateKind.FINISHING, SweepReason.REPORT_FAILED, previous.conditions[0].message)
    return SweepState(StateKind.RUNNING, SweepReason.REPORTING, "All trials have ended, and they are compared.")


def _build_resultless_state(facts: SweepFacts) -> SweepState:
    without_value = [row.name for row in facts.rows if row.phase == COMPLETE]
    metric = facts.spec.objective.metric
    if without_value:
        message = f"No trial is ranked: the results of {_join_names(without_value)} have no {metric}."
    else:
        texts = _describe_ends(facts.rows)
        message = f"All trials have ended without a result: {texts}. See the conditions of their FineTuneJobs."
    return SweepState(StateKind.FAILED, SweepReason.NO_COMPLETE_TRIAL, message)


def _describe_best(facts: SweepFacts, report: ReportState) -> str:
    metric = facts.spec.objective.metric
    best = rank_configurations(facts.rows, metric)[0]
    without_value = [row.name for row in facts.rows if row.phase == COMPLETE and not has_value(row)]
    values = best.first.parameters.describe() or "the template"
    sentences = [
        f"The best configuration is {values} ({best.first.name}), with {metric} {best.value:.4g}.",
        report.report.message if report.report else f"It was not compared with the others: {report.error}",
        f"Not ranked, because they have no {metric}: {_join_names(without_value)}." if without_value else "",
    ]
    return " ".join(filter(None, sentences))


def _build_problem_state(facts: SweepFacts, problem: SweepProblem) -> SweepState:
    if problem.is_permanent:
        return SweepState(StateKind.FAILED, problem.reason, problem.message)
    is_started = any(row.created for row in facts.rows)
    message = f"{problem.message} It is tried again every minute."
    return SweepState(StateKind.RUNNING if is_started else StateKind.WAITING, problem.reason, message)


def _build_stopped_state(facts: SweepFacts) -> SweepState | None:
    used = sum_gpu_seconds(facts.rows)
    if facts.spec.suspend:
        reason, cause = SweepReason.SUSPENDED, "spec.suspend is set"
        remedy = "Set spec.suspend to false to continue."
    elif facts.spec.budget and is_budget_used(facts.spec, used):
        limit = facts.spec.budget.gpu_seconds
        reason, cause = SweepReason.BUDGET_EXHAUSTED, f"the trials have used {used} of {limit} GPU-seconds"
        remedy = f"Set spec.budget.gpuSeconds above {used}, or remove it, to continue."
    else:
        return None
    if facts.active_names:
        message = f"The trials save a checkpoint and terminate, because {cause}."
        return SweepState(StateKind.RUNNING, SweepReason.SUSPENDING, message)
    return SweepState(StateKind.SUSPENDED, reason, f"No trial is active, because {cause}. {remedy}")


def _build_active_state(facts: SweepFacts) -> SweepState:
    if not any(row.created for row in facts.rows):
        message = "No trial has been created yet."
        return SweepState(StateKind.WAITING, SweepReason.TRIALS_PENDING, message)
    total, ended = len(facts.rows), sum(map(is_ended, facts.rows))
    out_of_budget = [name for name, child in facts.children.items() if child.is_out_of_budget]
    sentences = [
        f"{len(facts.active_names)} of {total} trials are active, and {ended} have ended.",
        f"The others are compared when all have reached step {facts.step}." if facts.step else "",
        f"Raise spec.budget of the FineTuneJobs {_join_names(out_of_budget)} to continue." if out_of_budget else "",
    ]
    return SweepState(StateKind.RUNNING, SweepReason.TRIALS_ACTIVE, " ".join(filter(None, sentences)))


def _join_names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(sorted(names)[:_MAX_NAMES]) + rest
