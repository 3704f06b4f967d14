"""A FineTuneSchedule on the API server, whose promotions the test drives. Acts as trainers, task pods and S3."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from tests.support.operator.builders import NOW, Body
from tests.support.operator.fault_proxy import Fault
from tests.support.operator.namespace_harness import NamespaceHarness
from tests.support.operator.schedule_samples import build_result, build_schedule_manifest

from finetune_operator.api.labels import TASK_LABEL
from finetune_operator.api.objects import ObjectKey
from finetune_operator.api.schedule import SCHEDULE_KIND, FineTuneSchedule, FineTuneScheduleStatus, ScheduledRun
from finetune_operator.controller.finetuneschedule.promoter import Promoter, PromotionResult
from finetune_operator.controller.finetuneschedule.request import ScheduleRequest
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.controller.run_control import RunControl
from finetune_operator.controller.task_runner import TASK_CHECK_SECONDS, TaskRunner
from finetune_operator.kube.client import FINETUNESCHEDULES, KubeClient
from finetune_operator.kube.transport import ApiError, Transport
from finetune_operator.observed.objects import get_controller_ref, is_finished
from finetune_operator.resources.scheduled_run import add_champion, build_scheduled_run
from finetune_operator.resources.task_job import read_task_config
from finetune_operator.status.events import create_merge_patch
from finetune_trainer.contract import PromoteTask, TaskConfig

COMPLETED = {"reason": "Completed", "message": "done"}
_MAX_STEPS = 40


class AliasStore:
    """The objects of aliases in S3, and the tasks that write them."""

    def __init__(self) -> None:
        self.objects: dict[str, Body] = {}
        self.failures: list[Body] = []
        """Outcomes of the next tasks that write an alias, in place of their work."""
        self.report_failures: list[Body] = []
        self.promotions: list[PromoteTask] = []
        """The tasks that have run."""

    def run_task(self, config: TaskConfig) -> Body:
        """Do the work of a task. Return its outcome."""
        if config.promote:
            self.promotions.append(config.promote)
            return self.failures.pop(0) if self.failures else self._promote(config.promote)
        assert config.schedule_report
        if self.report_failures:
            return self.report_failures.pop(0)
        return {**COMPLETED, "scheduleReport": {"reportURI": config.schedule_report.report_uri}}

    def _promote(self, task: PromoteTask) -> Body:
        stored = self.objects.get(task.alias_uri)
        expected = [reference.digest for reference in (task.predecessor, task.champion) if reference]
        if stored and stored.get("digest") not in expected and not task.overwrite:
            return {"reason": "AliasConflict", "message": f"the alias contains {json.dumps(stored)}"}
        promoted = {"promotedTime": task.promoted_time}
        self.objects[task.alias_uri] = {"run": task.champion.run, "digest": task.champion.digest, **promoted}
        return {**COMPLETED, "promote": {"etag": "0"}}


class PromotionHarness:
    """One FineTuneSchedule. Calls the Promoter and stores its status, as the reconciler does."""

    def __init__(self, world: NamespaceHarness, client: KubeClient, name: str) -> None:
        self.world = world
        self.name = name
        self.alias = AliasStore()
        self.now = datetime.fromisoformat(NOW)
        self._client = client

    @property
    def alias_run(self) -> str | None:
        """The run that the alias names."""
        stored = self.alias.objects.get("s3://bucket/bot/champion.json")
        return stored["run"] if stored else None

    def _path(self, subresource: str = "") -> str:
        path = f"{FINETUNESCHEDULES.build_path(self.world.namespace)}/{self.name}"
        return f"{path}/{subresource}" if subresource else path

    async def create(self, spec: Body | None = None) -> None:
        manifest = build_schedule_manifest(self.name, self.world.namespace, spec)
        await self.world.call("POST", FINETUNESCHEDULES.build_path(self.world.namespace), manifest)
        await self.world.call("PATCH", self._path("status"), {"status": {"runs": []}})

    async def edit(self, spec: Body) -> None:
        """Edit the spec as a user does."""
        await self.world.call("PATCH", self._path(), {"spec": spec})

    def pass_time(self, **delta: float) -> None:
        self.now += timedelta(**delta)

    async def read(self) -> ScheduleRequest:
        body = await self.world.call("GET", self._path())
        key = ObjectKey(SCHEDULE_KIND, self.world.namespace, self.name)
        now = self.now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return ScheduleRequest(key, body, FineTuneSchedule.model_validate(body), (), now)

    async def read_status(self) -> FineTuneScheduleStatus:
        status = (await self.read()).schedule.status
        assert status
        return status

    async def store(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> None:
        """Store the status as the reconciler does. Raises `ApiError` if it has changed since `request`."""
        if patch := create_merge_patch(request.body.get("status", {}), status.to_json()):
            version = {"resourceVersion": request.body["metadata"]["resourceVersion"]}
            await self._client.patch_status(
                FINETUNESCHEDULES, self.world.namespace, self.name, {"metadata": version, "status": patch}
            )

    async def begin_run(self, name: str) -> Body:
        """Record and create a run as the reconciler does. Return its FineTuneJob."""
        request = await self.read()
        schedule, status = request.schedule, request.schedule.status
        assert status
        times = {"scheduled_time": request.now, "template_hash": "0"}
        run = add_champion(ScheduledRun(name=name, trigger="Schedule", created=True, **times), schedule)  # type: ignore[arg-type]
        await self.store(request, status.model_copy(update={"runs": [run, *status.runs]}))
        return await self.world.call("POST", self.world.path("finetunejobs"), build_scheduled_run(schedule, run))

    async def end_run(self, name: str, phase: str = "Complete", **result: Any) -> None:
        """End a run as its trainer does, and record it as the reconciler does."""
        self.pass_time(seconds=60)
        request = await self.read()
        published = build_result(name, **{"baselines": None, **result}) if phase == "Complete" else None
        await self.end_finetunejob(name, phase, published)
        assert request.schedule.status
        ended: Body = {"phase": phase, "reason": phase, "completion_time": request.now}
        if published:
            ended |= {"adapter_uri": published["adapterURI"], "digest": published["digest"]}
        runs = [run.model_copy(update=ended) if run.name == name else run for run in request.schedule.status.runs]
        await self.store(request, request.schedule.status.model_copy(update={"runs": runs}))

    async def end_finetunejob(self, name: str, phase: str, result: Body | None) -> None:
        """Report the end of a FineTuneJob as its controller does."""
        time = self.now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": phase, "status": "True", "reason": phase, "lastTransitionTime": time}
        status = {"phase": phase, "conditions": [condition], "completionTime": time, "result": result}
        await self.world.call("PATCH", self.world.path("finetunejobs", name, "status"), {"status": status})

    async def add_run(self, name: str, phase: str = "Complete", **result: Any) -> None:
        """Create a run and end it."""
        await self.begin_run(name)
        await self.end_run(name, phase, **result)

    async def step(self) -> PromotionResult:
        """Let a restarted operator do one step, and store its status."""
        request = await self.read()
        assert request.schedule.status
        result = await self.build_promoter().promote(request, request.schedule.status)
        await self.store(request, result.status)
        return result

    def build_promoter(self) -> Promoter:
        settings, profiles = self.world.settings, ProfileStore(self.world.settings.profiles_file)
        return Promoter(RunControl(self._client, settings, profiles), TaskRunner(self._client, settings, profiles))

    async def settle(self) -> PromotionResult:
        """Let the operator work until it waits for something else than tasks. All tasks end at once."""
        for _ in range(_MAX_STEPS):
            result = await self.step()
            if result.requeue_after is None or result.requeue_after > TASK_CHECK_SECONDS:
                return result
            if result.requeue_after == TASK_CHECK_SECONDS:
                await self.end_tasks()
        raise AssertionError(f"it never settles: {result}")

    async def settle_with_fault(self, number: int, after_effect: bool) -> bool:
        """Settle with an operator that is killed at the request of this number. Return whether there was one."""
        proxy = self.world.proxy
        last = len(proxy.requests) + number

        async def kill(request: web.Request) -> None:
            if len(proxy.requests) == last:
                proxy.faults.append(Fault(request.method, request.path, 503, after_effect, {}))

        proxy.interceptor = kill
        try:
            await self.settle()
        except ApiError as error:
            if error.status != 503:
                raise
            await self.settle()
            return True
        return False

    async def list_task_jobs(self, kind: str = "promote") -> list[Body]:
        """Return the Jobs of tasks of this kind, each checked to be owned by the schedule."""
        jobs = await self.world.list_objects("jobs")
        owned = [job for job in jobs if get_controller_ref(job).get("name") == self.name]
        return [job for job in owned if job["metadata"]["labels"][TASK_LABEL] == kind]

    async def end_tasks(self) -> None:
        """Run all unfinished tasks."""
        for kind in ("promote", "report"):
            for job in await self.list_task_jobs(kind):
                if not is_finished(job):
                    config = read_task_config(job)
                    assert config
                    await self._end_task(job, self.alias.run_task(config))

    async def _end_task(self, job: Body, outcome: Body) -> None:
        """Act as the Job controller and the kubelet for the Job of a task."""
        name, is_complete = job["metadata"]["name"], outcome["reason"] == "Completed"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        template = job["spec"]["template"]
        meta = {**template["metadata"], "name": f"{name}-x", "ownerReferences": [{**owner, "controller": True}]}
        pod = {"metadata": meta, "spec": {**template["spec"], "nodeName": "node-1"}}
        await self.world.call("POST", self.world.path("pods"), pod)
        state = {"terminated": {"exitCode": 0 if is_complete else 42, "message": json.dumps(outcome)}}
        entry = {"name": "task", "state": state, "ready": False, "restartCount": 0, "image": "x", "imageID": "x"}
        status = {"phase": "Succeeded" if is_complete else "Failed", "containerStatuses": [entry]}
        await self.world.call("PATCH", self.world.path("pods", f"{name}-x", "status"), {"status": status})
        await self.world.report_job_end("Complete" if is_complete else "Failed", name=name)


@asynccontextmanager
async def open_client(world: NamespaceHarness) -> AsyncIterator[KubeClient]:
    """Open a client with the permissions of the operator, behind the proxy."""
    transport = Transport(world.settings.request_timeout)
    await transport.open()
    try:
        yield KubeClient(transport, lambda: True)
    finally:
        await transport.close()
