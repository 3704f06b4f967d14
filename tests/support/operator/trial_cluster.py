"""Acts as Kubernetes' controllers and as the trainers of the trials of a FineTuneSweep on a real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.support.operator.builders import Body, seconds_ago
from tests.support.operator.namespace_harness import NamespaceHarness, RequestRejected
from tests.support.operator.sweeps import DIGEST, build_sweep

from finetune_operator.api.labels import TASK_LABEL

REPORT_URI = "s3://bucket/lr/report.html"
REPORT = {
    "reason": "Completed",
    "message": "compared",
    "sweepReport": {"reportURI": REPORT_URI, "verdict": "Inconclusive", "message": "The difference may be chance."},
}


class TrialCluster:
    """The trainers of all trials. A trial without a loss in `losses` runs until it is stopped."""

    def __init__(self, world: NamespaceHarness) -> None:
        self._world = world
        self.losses: dict[str, float] = {}
        """Validation losses by trial. Each loss ends its trial, or lets it reach its step."""
        self.failures: set[str] = set()
        """Trials that fail."""
        self.report: Body | None = REPORT
        """The outcome of the report's task, or None while it runs."""
        self.started: list[str] = []
        """The trials in the order in which their trainers started."""
        self.max_active = 0
        """The highest number of trainers that ran at the same time."""

    async def create_sweep(self, spec: Body | None = None, name: str = "lr") -> None:
        """Create a FineTuneSweep as a user does."""
        body = build_sweep(name, self._world.namespace, spec)
        await self._world.call("POST", self._world.path("finetunesweeps"), body)

    async def patch_sweep(self, **spec: Any) -> None:
        """Edit the spec of the sweep as a user does."""
        await self._world.call("PATCH", self._world.path("finetunesweeps", "lr"), {"spec": spec})

    async def patch_trial(self, name: str, **spec: Any) -> None:
        """Edit the spec of a trial by hand."""
        await self._world.patch_spec(spec, name)

    async def get_status(self, name: str = "lr") -> Body:
        """Return the status of the sweep."""
        status: Body = (await self._world.get("finetunesweeps", name)).get("status", {})
        return status

    async def wait_for_status(self, check: Callable[[Body], bool], seconds: float = 20) -> Body:
        """Wait until the status of the sweep passes a check. Return it."""

        async def probe() -> Body | None:
            status = await self.get_status()
            return status if status and check(status) else None

        return await self._world.wait_until(probe, seconds)

    async def wait_for_reason(self, reason: str) -> Body:
        """Wait until the sweep has this reason. Return its status."""
        return await self.wait_for_status(lambda status: status.get("reason") == reason)

    async def list_running(self) -> list[str]:
        """Return the trials whose Job has not ended."""
        jobs = await self._world.list_objects("jobs")
        return sorted(job["metadata"]["name"] for job in jobs if not _is_task(job) and not _is_ended(job))

    @asynccontextmanager
    async def act(self) -> AsyncIterator[None]:
        """Act until the end of the block."""
        task = asyncio.create_task(self._act_forever())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _act_forever(self) -> None:
        while True:
            jobs = await self._world.list_objects("jobs")
            pods = {pod["metadata"]["name"]: pod for pod in await self._world.list_objects("pods")}
            for job in jobs:
                with suppress(RequestRejected):  # the operator may have deleted it
                    await self._act_on_job(job, pods)
            unfinished = [job for job in jobs if not _is_task(job) and not _is_ended(job)]
            self.max_active = max(self.max_active, len(unfinished))
            await asyncio.sleep(0.05)

    async def _act_on_job(self, job: Body, pods: dict[str, Body]) -> None:
        name = job["metadata"]["name"]
        if "deletionTimestamp" in job["metadata"]:
            await self._world.finish_job_deletion(name)
        elif _is_task(job):
            if self.report and not _is_ended(job):
                await self._end_task(job, self.report)
        elif f"{name}-1" not in pods:
            await self._world.create_pod(name)
            self.started.append(name)
            await self._world.report_container_state({"running": {"startedAt": seconds_ago(2)}}, name=f"{name}-1")
        elif not _is_ended(job):
            await self._end_trial(job, name)

    async def _end_trial(self, job: Body, name: str) -> None:
        if name in self.failures:
            await self._report_end(name, 42, {"reason": "DataInvalid", "message": "row 7"})
        elif name in self.losses:
            step = _get_stop_step(job)
            await self._report_end(name, 0, _build_outcome(name, self.losses[name], step))

    async def _report_end(self, name: str, code: int, outcome: Body) -> None:
        times = {"startedAt": seconds_ago(2), "finishedAt": seconds_ago(0)}
        state = {"terminated": {"exitCode": code, "message": json.dumps(outcome), **times}}
        await self._world.report_container_state(state, "Failed" if code else "Succeeded", f"{name}-1")
        await self._world.report_job_end("Failed" if code else "Complete", name=name, end_time=seconds_ago(0))

    async def _end_task(self, job: Body, outcome: Body) -> None:
        """Act as the Job controller and the kubelet for the Job of a task."""
        meta, template = job["metadata"], job["spec"]["template"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
        pod = f"{meta['name']}-x"
        pod_meta = {**template["metadata"], "name": pod, "ownerReferences": [owner]}
        body = {"metadata": pod_meta, "spec": {**template["spec"], "nodeName": "node-1"}}
        await self._world.call("POST", self._world.path("pods"), body)
        is_complete = outcome["reason"] == "Completed"
        state = {"terminated": {"exitCode": 0 if is_complete else 42, "message": json.dumps(outcome)}}
        entry = {"name": "task", "state": state, "ready": False, "restartCount": 0, "image": "x", "imageID": "x"}
        status = {"phase": "Succeeded" if is_complete else "Failed", "containerStatuses": [entry]}
        await self._world.call("PATCH", self._world.path("pods", pod, "status"), {"status": status})
        final_type = "Complete" if is_complete else "Failed"
        await self._world.report_job_end(final_type, name=meta["name"], end_time=seconds_ago(0))


def _is_task(job: Body) -> bool:
    return TASK_LABEL in job["metadata"].get("labels", {})


def _is_ended(job: Body) -> bool:
    return bool(job.get("status", {}).get("conditions"))


def _get_stop_step(job: Body) -> int | None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = [each["value"] for each in container["env"] if each["name"] == "FINETUNE_SUSPEND_AT_STEP"]
    return int(values[0]) if values else None


def _build_outcome(name: str, loss: float, step: int | None) -> Body:
    if step:
        return {"reason": "StepReached", "message": "words", "stepResult": {"step": step, "evalLoss": loss}}
    result = {"adapterURI": f"s3://bucket/lr/{name}", "digest": DIGEST, "modelRevision": "r"}
    return {"reason": "Completed", "message": "words", "result": {**result, "metrics": {"evalLoss": loss}}}
