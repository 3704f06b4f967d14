"""The observed state of one FineTuneJob, which its status is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from finetune_operator.api import ObservedProgress, OperatorReason
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.objects import ReasonMessage
from finetune_trainer.contract import Progress, Stage, StepResult


class Blocked(NamedTuple):
    """The reason why a FineTuneJob has no Job."""

    reason: OperatorReason
    message: str
    terminal: bool = False
    """Whether the run has failed. Otherwise the operator retries."""


@dataclass(frozen=True)
class ObservedState:
    """The state of one FineTuneJob in the cluster."""

    job: Body | None = None
    """The Job that the FineTuneJob controls."""
    pods: tuple[Body, ...] = ()
    """The pods that this Job controls."""
    progress: Progress | None = None
    """The progress that the running pod reported last."""
    warning: ReasonMessage | None = None
    """The newest warning about a pod that does not start, or about a Job without a pod."""
    blocked: Blocked | None = None
    """Why there is no Job, or None if there is one or if it is about to be created."""
    run_policy: RunPolicy = field(default_factory=RunPolicy)
    spec: Body = field(default_factory=dict)
    """The stored spec, for messages that name its fields. It may be of another version."""
    terminating_pod: str | None = None
    """The name of a pod of a deleted Job that has not terminated."""
    queue_status: ReasonMessage | None = None
    """Kueue's explanation why the Job is queued."""
    orphaned_pods: tuple[Body, ...] = ()
    """Pods of deleted Jobs of this FineTuneJob. They count for usage and checkpoints, and show whether a
    stopped run published its result before its Job was gone."""


@dataclass(frozen=True)
class RunHistory:
    """What the previous status recorded about the run, updated with the observed state."""

    now: str
    interruptions: int = 0
    """Attempts since the latest checkpoint that were interrupted."""
    unreported_interruptions: int = 0
    """Attempts since the latest checkpoint whose termination was never reported."""
    last_attempt_time: str | None = None
    """When a trainer last started."""
    last_attempt_creation_time: str | None = None
    """When the pod of that trainer was created. It is unknown if an earlier version recorded the attempt."""
    progress: ObservedProgress | None = None
    """The last reported progress. Its `lastUpdateTime` is the time of the last change."""
    stage: Stage | None = None
    """The stage of the running pod, or None if it has not reported one."""
    step_result: StepResult | None = None
    """The result at the last step to stop at that the training has reached."""
