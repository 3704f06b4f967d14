"""What is known of one FineTuneJob when its state is looked up. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from finetune_operator.api import ObservedProgress, OperatorReason
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.objects import ReasonMessage
from finetune_trainer.contract import Progress, Stage


class Blocked(NamedTuple):
    """Why there is no Job."""

    reason: OperatorReason
    message: str
    terminal: bool = False
    """Whether it will stay so."""


@dataclass(frozen=True)
class ObservedState:
    """What the cluster shows of one FineTuneJob."""

    job: Body | None = None
    """Its own Job."""
    pods: tuple[Body, ...] = ()
    """Its own Job's pods."""
    progress: Progress | None = None
    """What the running pod last said."""
    warning: ReasonMessage | None = None
    """The last warning about the pod that does not start, or about the Job that has none."""
    blocked: Blocked | None = None
    run_policy: RunPolicy = field(default_factory=RunPolicy)
    terminating_pod: str | None = None
    """A pod of a deleted Job that has not ended."""
    queue_status: ReasonMessage | None = None
    """Why a queue holds the Job, in the queue's words."""
    orphaned_pods: tuple[Body, ...] = ()
    """Pods of its Jobs that are gone: they tell what was used and saved, and nothing of where the run is."""


@dataclass(frozen=True)
class RunHistory:
    """What is known of the run from before, with what is seen added."""

    now: str
    interruptions: int = 0
    """Interruptions without a newer checkpoint."""
    unreported_interruptions: int = 0
    """Attempts since the last known checkpoint whose end was never reported."""
    last_attempt_time: str | None = None
    """When a trainer last started."""
    progress: ObservedProgress | None = None
    """Its `lastUpdateTime` is that of the last change."""
    stage: Stage | None = None
    """What the running pod does; None if it has reported nothing yet."""
