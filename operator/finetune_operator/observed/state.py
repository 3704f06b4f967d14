"""What is known of one FineTuneJob when its state is looked up. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from finetune_operator.api import ObservedProgress, OperatorReason
from finetune_operator.api.run_policy import Wanted
from finetune_operator.observed.objects import Body, Said
from finetune_trainer.contract import Progress, Stage


class Obstacle(NamedTuple):
    """Why there is no Job."""

    reason: OperatorReason
    message: str
    final: bool = False
    """Whether it will stay so."""


@dataclass(frozen=True)
class Seen:
    """What the cluster shows of one FineTuneJob."""

    job: Body | None = None
    """Its own Job."""
    pods: tuple[Body, ...] = ()
    """Its own Job's pods."""
    progress: Progress | None = None
    """What the running pod last said."""
    warning: Said | None = None
    """The last warning about the pod that does not start, or about the Job that has none."""
    obstacle: Obstacle | None = None
    wanted: Wanted = field(default_factory=Wanted)
    leaving: str | None = None
    """A pod of a deleted Job that has not ended."""
    waits: Said | None = None
    """Why a queue holds the Job, in the queue's words."""
    left: tuple[Body, ...] = ()
    """Pods of its Jobs that are gone: they tell what was used and saved, and nothing of where the run is."""


@dataclass(frozen=True)
class Past:
    """What is known of the run from before, with what is seen added."""

    now: str
    in_vain: int = 0
    """Interruptions without a newer checkpoint."""
    unreported: int = 0
    """Attempts since the last known checkpoint whose end was never reported."""
    started: str | None = None
    """When a trainer last started."""
    progress: ObservedProgress | None = None
    """Its `lastUpdateTime` is that of the last change."""
    stage: Stage | None = None
    """What the running pod does; None if it has reported nothing yet."""
