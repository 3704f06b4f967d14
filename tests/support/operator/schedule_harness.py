"""A FineTuneSchedule on a real API server, with a clock that tests set. Acts as trainers and as task pods."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.operator.builders import Body, merge_objects
from tests.support.operator.namespace_harness import NamespaceHarness

from finetune_operator.api.labels import TASK_LABEL
from finetune_operator.api.objects import ObjectKey
from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.controller.finetuneschedule.reconciler import ScheduleReconciler
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.kube.client import FINETUNESCHEDULES, KubeClient
from finetune_operator.kube.lister import Lister
from finetune_operator.kube.namespace_access import NamespaceRegistry
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.kube.transport import Transport
from finetune_operator.settings import Settings

MINUTELY = "* * * * *"
_MAX_STEPS = 15
_TEMPLATE = {
    "model": {"uri": "hf://org/name"},
    "dataset": {"sources": [{"uri": "s3://bucket/data/"}]},
    "training": {"epochs": 1},
    "output": {"uri": "s3://bucket/bot/{name}"},
}


class ListFailedError(Exception):
    """A list failed. The lister has logged why."""


class ScheduleOperator:
    """The controller of FineTuneSchedules of one replica. Its caches are as old as the last `refresh`."""

    def __init__(self, client: KubeClient, world: ScheduleWorld, settings: Settings) -> None:
        self.cache = OwnerCache(SCHEDULE_KIND, FINETUNESCHEDULES)
        self._key = ObjectKey(SCHEDULE_KIND, world.namespace, "bot")
        self._lister = Lister(client, NamespaceRegistry([world.namespace]))
        self._lister.add_informer(self.cache)
        self._namespace = world.namespace
        store = ProfileStore(settings.profiles_file)
        self._reconciler = ScheduleReconciler(self.cache, client, settings, world.get_now, store)

    async def refresh(self) -> None:
        """Fill the caches as watches do."""
        if not await self._lister.refresh([self._namespace]):
            raise ListFailedError

    async def reconcile(self) -> float | None:
        """Reconcile once. Return the seconds until the next reconcile."""
        return await self._reconciler.reconcile(self._key)

    async def settle(self) -> float | None:
        """Reconcile with new caches until nothing is to be done at once. Return the seconds until the next time."""
        await self.refresh()
        for _ in range(_MAX_STEPS):
            if (delay := await self.reconcile()) != 0:
                return delay
        raise AssertionError("the schedule never settles")


class ScheduleWorld:
    """A namespace with the schedule `bot`."""

    def __init__(self, world: NamespaceHarness, client: KubeClient) -> None:
        self._world = world
        self._client = client
        self.namespace = world.namespace
        self.proxy = world.proxy
        self.now = datetime.now(UTC)

    def get_now(self) -> datetime:
        return self.now

    def advance(self, seconds: float = 60) -> None:
        """Move the clock."""
        self.now += timedelta(seconds=seconds)

    def build_operator(self, **settings: Any) -> ScheduleOperator:
        """Return a replica that has just started."""
        return ScheduleOperator(self._client, self, self._world.settings.model_copy(update=settings))

    def get_name(self) -> str:
        """Return the name of a run of this minute."""
        return f"bot-{int(self.now.timestamp()) // 60}"

    async def create(self, **spec: Any) -> Body:
        """Create the schedule in the middle of a minute, so that the first minutely slot comes half a minute later."""
        base = {"promotion": {"mode": "manual"}, "template": {"spec": _TEMPLATE}}
        manifest = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": SCHEDULE_KIND,
            "metadata": {"name": "bot", "namespace": self.namespace},
            "spec": merge_objects(base, spec),
        }
        body = await self._world.call("POST", self._path(), manifest)
        self.now = datetime.fromisoformat(body["metadata"]["creationTimestamp"]).replace(second=0) + timedelta(
            minutes=1
        )
        return body

    async def get(self) -> Body:
        return await self._world.call("GET", self._path("bot"))

    async def get_status(self) -> Body:
        status: Body = (await self.get()).get("status", {})
        return status

    async def get_condition(self, condition_type: str) -> tuple[str, str]:
        """Return status and reason of a condition."""
        conditions = (await self.get_status())["conditions"]
        return next((each["status"], each["reason"]) for each in conditions if each["type"] == condition_type)

    async def patch(self, spec: Body) -> None:
        await self._world.call("PATCH", self._path("bot"), {"spec": spec})

    async def delete(self) -> None:
        await self._world.call("DELETE", self._path("bot"), {"propagationPolicy": "Background"})

    async def list_runs(self) -> list[Body]:
        """Return the FineTuneJobs, the oldest name first."""
        return sorted(await self._world.list_objects("finetunejobs"), key=lambda body: str(body["metadata"]["name"]))

    async def list_run_names(self) -> list[str]:
        return [run["metadata"]["name"] for run in await self.list_runs()]

    async def delete_run(self, name: str) -> None:
        await self._world.delete("finetunejobs", name)

    async def list_event_reasons(self) -> list[str]:
        events = await self._world.list_objects("events")
        return [each["reason"] for each in events if each["involvedObject"]["kind"] == SCHEDULE_KIND]

    async def end_run(
        self, name: str, condition_type: str = "Complete", reason: str = "Completed", message: str = ""
    ) -> None:
        """Act as the trainer and the controller of FineTuneJobs: end a run."""
        time = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": condition_type, "status": "True", "lastTransitionTime": time, "reason": reason}
        condition["message"] = message
        result = {
            "adapterURI": f"s3://bucket/bot/{name}/adapter",
            "digest": f"sha256:{'0' * 54}{name[-10:].rjust(10, '0').replace('-', '0').replace('t', '0')}",
            "modelRevision": "main",
        }
        status = {"phase": condition_type, "reason": reason, "conditions": [condition], "completionTime": time}
        if condition_type == "Complete":
            status["result"] = result
        await self._world.call("PATCH", self._world.path("finetunejobs", name, "status"), {"status": status})

    async def list_checks(self) -> list[Body]:
        """Return the Jobs of tasks."""
        jobs = await self._world.list_objects("jobs")
        return [job for job in jobs if job["metadata"].get("labels", {}).get(TASK_LABEL) == "check-inputs"]

    async def end_check(self, reason: str = "Completed", **inputs: Any) -> None:
        """Act as the pod of the check that has not ended, and as the Job controller."""
        (job,) = [job for job in await self.list_checks() if not job.get("status", {}).get("conditions")]
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
        template = job["spec"]["template"]
        meta = {**template["metadata"], "name": f"{name}-x", "ownerReferences": [owner]}
        pod = {"metadata": meta, "spec": {**template["spec"], "nodeName": "node-1"}}
        await self._world.call("POST", self._world.path("pods"), pod)
        report = {"digest": f"sha256:{'1' * 64}", "files": 1, "bytes": 100, "hasResult": True, **inputs}
        outcome = {"reason": reason, "message": "said", **({"inputs": report} if reason == "Completed" else {})}
        is_failed = reason != "Completed"
        state = {"terminated": {"exitCode": 42 if is_failed else 0, "message": json.dumps(outcome)}}
        entry = {"name": "task", "state": state, "ready": False, "restartCount": 0, "image": "x", "imageID": "x"}
        status = {"phase": "Failed" if is_failed else "Succeeded", "containerStatuses": [entry]}
        await self._world.call("PATCH", self._world.path("pods", f"{name}-x", "status"), {"status": status})
        end_time = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._world.report_job_end("Failed" if is_failed else "Complete", name=name, end_time=end_time)

    def get_status_path(self) -> str:
        return f"{self._path('bot')}/status"

    def _path(self, name: str = "") -> str:
        path = f"/apis/finetune.dev/v1alpha1/namespaces/{self.namespace}/finetuneschedules"
        return f"{path}/{name}" if name else path


@asynccontextmanager
async def open_schedule_world(world: NamespaceHarness) -> AsyncIterator[ScheduleWorld]:
    """Connect operators to the API server of a namespace, through its proxy."""
    transport = Transport(world.settings.request_timeout)
    await transport.open()
    try:
        yield ScheduleWorld(world, KubeClient(transport, lambda: True))
    finally:
        await transport.close()
