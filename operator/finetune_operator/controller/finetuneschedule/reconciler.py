"""Reconcile one FineTuneSchedule."""

from __future__ import annotations

from finetune_operator.api.objects import ObjectKey
from finetune_operator.controller.run_control import RunControl
from finetune_operator.controller.task_runner import TaskRunner
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.owner_cache import OwnerCache


class ScheduleReconciler:
    """Brings the cluster to the desired state of one FineTuneSchedule."""

    def __init__(self, cache: OwnerCache, client: KubeClient, run_control: RunControl, task_runner: TaskRunner) -> None:
        self._cache = cache
        self._client = client
        self._run_control = run_control
        self._task_runner = task_runner

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile once. Return the seconds until the next reconcile, or None if only events need one."""
        return None
