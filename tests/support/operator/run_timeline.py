"""The observed state of a run, minute by minute."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
DISRUPTION_TARGET = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
Pod = dict[str, Any]


def timestamp_at(minute: int) -> str:
    return f"2026-11-23T{8 + minute // 60:02}:{minute % 60:02}:00Z"


class RunTimeline:
    """Computes the status of a run from the pods that are observed at each minute."""

    def __init__(self, build: type[Builders], **run_policy: Any) -> None:
        self._builders = build
        self._run_policy = RunPolicy(**run_policy)
        self.status = FineTuneJobStatus()

    def running_pod(self, start_minute: int, name: str = "", index: str | None = None) -> Pod:
        pod = self._builders.pod(
            name or f"bot-{start_minute}",
            {"running": {"startedAt": timestamp_at(start_minute)}},
            "Running",
            created=timestamp_at(start_minute),
        )
        if index is not None:
            pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
        return pod

    def terminated_pod(
        self, start_minute: int, end_minute: int, exit_code: int, checkpoint: int | None = None, evicted: bool = False
    ) -> Pod:
        progress: dict[str, Any] = {"stage": "Training", "lastUpdateTime": timestamp_at(end_minute)}
        if checkpoint is not None:
            progress |= {"lastCheckpointStep": checkpoint, "lastCheckpointTime": timestamp_at(checkpoint)}
        reason = {143: "Preempted", 75: "StorageUnreachable"}.get(exit_code)
        message = json.dumps({"reason": reason, "message": "", "progress": progress}) if reason else ""
        if not reason and checkpoint is not None:
            message = json.dumps({"checkpoint": {"step": checkpoint, "time": timestamp_at(checkpoint)}})
        state = {
            "exitCode": exit_code,
            "message": message,
            "startedAt": timestamp_at(start_minute),
            "finishedAt": timestamp_at(end_minute),
        }
        conditions = [DISRUPTION_TARGET] if evicted else []
        return self._builders.pod(
            f"bot-{start_minute}",
            {"terminated": state},
            "Failed",
            created=timestamp_at(start_minute),
            conditions=conditions,
        )

    def observe(self, minute: int, *pods: Pod, checkpoint: int | None = None) -> FineTuneJobStatus:
        progress = None
        if checkpoint is not None:
            progress = Progress(
                stage="Training", last_checkpoint_step=checkpoint, last_checkpoint_time=timestamp_at(checkpoint),
                last_update_time=timestamp_at(minute),
            )  # fmt: skip
        observed = ObservedState(
            job=self._builders.job(active=1), pods=pods, progress=progress, run_policy=self._run_policy
        )
        self.status = compute_status(META, self.status, observed, timestamp_at(minute))
        return self.status

    def get_reason(self) -> str:
        return self.status.conditions[0].reason
