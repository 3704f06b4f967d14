"""What the operator sees of one run, minute by minute."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.operator.bodies import Build

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
Pod = dict[str, Any]


def at(minute: int) -> str:
    return f"2026-11-23T{8 + minute // 60:02}:{minute % 60:02}:00Z"


class Story:
    """What the operator sees of one run, minute by minute."""

    def __init__(self, build: type[Build], **wanted: Any) -> None:
        self._build = build
        self._wanted = RunPolicy(**wanted)
        self.status = FineTuneJobStatus()

    def running(self, start: int, name: str = "", index: str | None = None) -> Pod:
        pod = self._build.pod(
            name or f"bot-{start}", {"running": {"startedAt": at(start)}}, "Running", created=at(start)
        )
        if index is not None:
            pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
        return pod

    def ended(self, start: int, end: int, code: int, checkpoint: int | None = None, evicted: bool = False) -> Pod:
        said: dict[str, Any] = {"stage": "Training", "lastUpdateTime": at(end)}
        if checkpoint is not None:
            said |= {"lastCheckpointStep": checkpoint, "lastCheckpointTime": at(checkpoint)}
        reason = {143: "Preempted", 75: "StorageUnreachable"}.get(code)
        word = json.dumps({"reason": reason, "message": "", "progress": said}) if reason else ""
        if not reason and checkpoint is not None:
            word = json.dumps({"checkpoint": {"step": checkpoint, "time": at(checkpoint)}})
        state = {"exitCode": code, "message": word, "startedAt": at(start), "finishedAt": at(end)}
        conditions = [DISRUPTED] if evicted else []
        return self._build.pod(
            f"bot-{start}", {"terminated": state}, "Failed", created=at(start), conditions=conditions
        )

    def see(self, minute: int, *pods: Pod, checkpoint: int | None = None) -> FineTuneJobStatus:
        progress = None
        if checkpoint is not None:
            progress = Progress(
                stage="Training", last_checkpoint_step=checkpoint, last_checkpoint_time=at(checkpoint),
                last_update_time=at(minute),
            )  # fmt: skip
        seen = ObservedState(job=self._build.job(active=1), pods=pods, progress=progress, run_policy=self._wanted)
        self.status = compute_status(META, self.status, seen, at(minute))
        return self.status

    def reason(self) -> str:
        return self.status.conditions[0].reason
