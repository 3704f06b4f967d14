"""Lifecycles of jobs: stored objects of finished runs, and the status updates of other controllers during a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Iterator
from typing import Any

from tests.bench.api import Api, Body
from tests.bench.operators import NAMESPACE, OURS, TRAINER, Subject
from tests.support.operator.builders import NOW, build_terminated_state

from finetune_operator.api import FineTuneJob, FineTuneJobStatus, ObjectMeta
from finetune_operator.observed.state import ObservedState
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings
from finetune_operator.status.job_status import compute_status

JOBS = OURS.children
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_OUTCOME = {
    "reason": "Completed",
    "message": "The adapter lies at s3://bucket/adapters/bench/bot.",
    "backend": "unsloth",
    "dataset": {
        "rows": 100,
        "kept": 90,
        "rejected": {},
        "tokens": 9000,
        "supervisedTokens": 4000,
        "digest": "sha256:1",
    },
    "result": {"adapterURI": "s3://bucket/adapters/bench/bot", "digest": f"sha256:{'a' * 64}", "modelRevision": "main"},
}


def store_finished(api: Api, subject: Subject, first: int, last: int) -> Iterator[Awaitable[None]]:
    """Yield coroutines that store the objects of finished runs, with the numbers `first` to `last` - 1."""
    make = _store_finished_train_job if subject is TRAINER else _store_finished_finetunejob
    return (make(api, f"old-{number}") for number in range(first, last))


async def _store_finished_train_job(api: Api, name: str) -> None:
    await api.create(TRAINER.jobs, TRAINER.body(name))
    condition = {"type": "Complete", "status": "True", "reason": "AllJobsCompleted", "message": "jobset completed"}
    status = {"conditions": [{**condition, "lastTransitionTime": NOW}]}
    await api.call("PATCH", f"{TRAINER.jobs}/{name}/status", {"status": status})


async def _store_finished_finetunejob(api: Api, name: str) -> None:
    stored = await api.create(OURS.jobs, OURS.body(name))
    job = await api.create(JOBS, build_job(FineTuneJob.model_validate({**stored, "status": None}), Settings()))
    pod = await start_pod(api, job)
    job, pod = await finish_pod(api, name)
    status = compute_status(
        ObjectMeta.model_validate(stored["metadata"]), FineTuneJobStatus(), ObservedState(job, (pod,)), NOW
    )
    await api.call("PATCH", f"{OURS.jobs}/{name}/status", {"status": status.to_json()})


async def complete_lifecycle(api: Api, name: str) -> None:
    """Start the pod of a created FineTuneJob and finish it a second later."""
    await start_pod(api, await api.call("GET", f"{JOBS}/{name}"))
    await asyncio.sleep(1)  # time for the operator to observe the running pod
    await finish_pod(api, name)


async def are_all_complete(api: Api, prefix: str) -> bool:
    """Return whether all FineTuneJobs with this name prefix have the phase Complete."""
    jobs = [job for job in (await api.call("GET", OURS.jobs))["items"] if job["metadata"]["name"].startswith(prefix)]
    return all(job["status"].get("phase") == "Complete" for job in jobs)


async def start_pod(api: Api, job: Body) -> Body:
    """Create the pod of a Job and set its status to running, as the Job controller and the kubelet do."""
    name = job["metadata"]["name"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True, "name": name, "uid": job["metadata"]["uid"]}
    template = job["spec"]["template"]
    meta = {**template["metadata"], "name": f"{name}-1", "ownerReferences": [owner]}
    await api.create(_PODS, {"metadata": meta, "spec": {**template["spec"], "nodeName": "node-1"}})
    return await _patch_pod_status(api, name, "Running", {"running": {"startedAt": NOW}})


async def finish_pod(api: Api, name: str) -> tuple[Body, Body]:
    """Set pod and Job to complete, as the kubelet and the Job controller do. Return both."""
    pod = await _patch_pod_status(api, name, "Succeeded", build_terminated_state(0, json.dumps(_OUTCOME), "Completed"))
    conditions = [
        {"type": kind, "status": "True", "reason": "CompletionsReached", "message": "", "lastTransitionTime": NOW}
        for kind in ("SuccessCriteriaMet", "Complete")
    ]
    status = {"conditions": conditions, "startTime": NOW, "completionTime": NOW, "succeeded": 1}
    status |= {"uncountedTerminatedPods": {}}
    return await api.call("PATCH", f"{JOBS}/{name}/status", {"status": status}), pod


async def _patch_pod_status(api: Api, name: str, phase: str, state: dict[str, Any]) -> Body:
    entry = {"name": "trainer", "state": state, "ready": True, "restartCount": 0, "image": "x", "imageID": "x"}
    change = {"status": {"phase": phase, "containerStatuses": [entry]}}
    return await api.call("PATCH", f"{_PODS}/{name}-1/status", change)
