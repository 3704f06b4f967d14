"""Why a run must have no Job: it is cancelled, suspended, at the limit of its budget or at a step to stop at.

Requests are fields of the spec. Whether a limit is reached follows from pods and outcomes, never from progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.job import get_suspend_at_step
from finetune_operator.observed.objects import is_being_deleted, parse_timestamp
from finetune_operator.observed.pod import (
    find_newest_pod,
    get_termination,
    is_alive,
    is_trainer_running,
    list_rank_zero_pods,
)
from finetune_operator.status import usage
from finetune_trainer.contract import ExitCode, StepResult


class StopCause(Enum):
    """Causes of a stop, the one with the highest precedence first."""

    CANCEL = auto()
    SUSPEND = auto()
    BUDGET = auto()
    STEP = auto()


class Stop(NamedTuple):
    """Why a run must have no Job."""

    cause: StopCause
    message: str
    """Sentences for the condition of the stopped run: what happened, and how to continue."""


_CANCEL_MESSAGE = (
    "spec.cancel is set, and all pods have terminated. To train again, create a new FineTuneJob. With the same model, "
    "data, training and output it resumes from the latest checkpoint."
)
_SUSPEND_MESSAGE = "All pods have terminated. Set spec.suspend to false to resume the run."


def find_stop(policy: RunPolicy, status: FineTuneJobStatus, pods: Sequence[Body], now: str) -> Stop | None:
    """Return why the run must have no Job now, or None if it may continue.

    The pods add what they have used since the status was accounted.
    """
    if policy.cancel:
        return Stop(StopCause.CANCEL, _CANCEL_MESSAGE)
    if policy.suspend:
        return Stop(StopCause.SUSPEND, _SUSPEND_MESSAGE)
    return _find_budget_stop(policy, status, pods, now) or _find_step_stop(policy, status.step_result)


def _find_budget_stop(policy: RunPolicy, status: FineTuneJobStatus, pods: Sequence[Body], now: str) -> Stop | None:
    if policy.budget_gpu_seconds is None and policy.budget_active_seconds is None:
        return None
    used = usage.compute_usage(status, pods, policy.gpus_per_node, now)
    amounts = (
        ("spec.budget.gpuSeconds", "GPU-seconds", used.gpu_seconds, policy.budget_gpu_seconds),
        ("spec.budget.activeSeconds", "seconds", used.active_seconds, policy.budget_active_seconds),
    )
    for field, unit, amount, limit in amounts:
        if limit is not None and amount >= limit:
            message = (
                f"The trainers have run for {amount} {unit}, and {field} is {limit}. All pods have terminated. Set "
                f"{field} above {amount}, or remove it, to resume the run from its latest checkpoint."
            )
            return Stop(StopCause.BUDGET, message)
    return None


def _find_step_stop(policy: RunPolicy, result: StepResult | None) -> Stop | None:
    if result is None or policy.suspend_at_step is None or policy.suspend_at_step > result.step:
        return None
    message = (
        f"The training has reached step {result.step}: {_describe_loss(result)}. Set spec.suspendAtStep "
        f"({policy.suspend_at_step}) above {result.step}, or remove it, to resume the run from its latest checkpoint."
    )
    return Stop(StopCause.STEP, message)


def _describe_loss(result: StepResult) -> str:
    if result.eval_loss_low is None or result.eval_loss_high is None:
        return f"the loss is {result.eval_loss:.4g}"
    interval = f"{result.eval_loss_low:.4g} to {result.eval_loss_high:.4g}"
    return f"the validation loss is {result.eval_loss:.4g} (95 % interval {interval})"


def is_completing(job: Body, pods: Sequence[Body]) -> bool:
    """Return whether all trainers of the Job have succeeded, so that the Job completes without being stopped."""
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    if last_pod is None or is_being_deleted(job) or get_termination(last_pod).exit_code != ExitCode.OK:
        return False
    return all(get_termination(pod).exit_code == ExitCode.OK for pod in pods if is_alive(pod))


def has_other_stop_step(job: Body, policy: RunPolicy) -> bool:
    """Return whether the Job's trainers stop at another step than the spec says now."""
    return get_suspend_at_step(job) != policy.suspend_at_step


def compute_budget_deadline(
    policy: RunPolicy, status: FineTuneJobStatus, pods: Sequence[Body], now: str
) -> float | None:
    """Return when the running trainers reach a limit of the budget, in seconds since 1970, or None if they do not."""
    running = sum(map(is_trainer_running, pods))
    if not running or (policy.budget_gpu_seconds is None and policy.budget_active_seconds is None):
        return None
    used = usage.compute_usage(status, pods, policy.gpus_per_node, now)
    amounts = (
        (policy.budget_gpu_seconds, used.gpu_seconds, running * policy.gpus_per_node),
        (policy.budget_active_seconds, used.active_seconds, 1),
    )
    delays = [(limit - amount) / rate for limit, amount, rate in amounts if limit is not None and rate]
    return (parse_timestamp(now) or 0.0) + min(delays) if delays else None
