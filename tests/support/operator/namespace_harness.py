"""A namespace of the API server with the operator. Acts as Kubernetes' controllers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import aiohttp
import kopf
from tests.support.operator.builders import NOW, Body, build_manifest
from tests.support.operator.fault_proxy import FaultProxy

from finetune_operator.controller.controller import Controller
from finetune_operator.manager import Manager
from finetune_operator.settings import Settings

OPERATOR_RULES = [  # all that the operator may do; the chart's Role is the same
    {
        "apiGroups": ["finetune.dev"],
        "resources": ["finetunejobs"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": ["finetune.dev"], "resources": ["finetuneschedules", "finetunesweeps"], "verbs": ["list", "watch"]},
    *(
        {
            "apiGroups": ["finetune.dev"],
            "resources": [f"{plural}/{part}" for plural in ("finetunejobs", "finetuneschedules", "finetunesweeps")],
            "verbs": [verb],
        }
        for part, verb in (("status", "patch"), ("finalizers", "update"))
    ),
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "delete"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "create"]},
]
LEASE_NAME = "operator"
API_PATHS = {"jobs": "/apis/batch/v1"}


def build_lease_rules(name: str) -> list[Body]:
    """Return the rules for the Lease. RBAC cannot restrict the name of a created object."""
    lease_rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
    return [{**lease_rule, "verbs": ["create"]}, {**lease_rule, "resourceNames": [name], "verbs": ["get", "update"]}]


T = TypeVar("T")


class RequestRejected(AssertionError):
    """The API server rejected a request of the test."""


class NamespaceHarness:
    """A namespace of the API server. Acts as the Job controller and the kubelet in it."""

    def __init__(self, session: aiohttp.ClientSession, proxy: FaultProxy, namespace: str, settings: Settings) -> None:
        self._session = session
        self.proxy = proxy
        self.namespace = namespace
        self.settings = settings

    async def call(self, method: str, path: str, body: Body | None = None) -> Body:
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        url = self.proxy.target + path
        async with self._session.request(method, url, json=body, headers={"Content-Type": content_type}) as response:
            if response.status >= 400:  # by words alone where a path is not served yet
                raise RequestRejected(await response.text())
            answer: Body = await response.json()
            return answer

    def path(self, plural: str, name: str = "", subresource: str = "") -> str:
        is_own_kind = plural.startswith("finetune")
        api_path = "/apis/finetune.dev/v1alpha1" if is_own_kind else API_PATHS.get(plural, "/api/v1")
        parts = [f"{api_path}/namespaces/{self.namespace}/{plural}", name, subresource]
        return "/".join(part for part in parts if part)

    async def create_finetunejob(self, name: str = "bot", spec: Body | None = None, **metadata: Any) -> Body:
        return await self.call(
            "POST", self.path("finetunejobs"), build_manifest(name, self.namespace, spec, **metadata)
        )

    async def grant_role(self, rules: list[Body], name: str = "operator") -> None:
        """Grant the operator these permissions in its namespace with a Role of that name."""
        api_path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.namespace}"
        await self.call("POST", f"{api_path}/roles", {"metadata": {"name": name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}
        await self.call(
            "POST", f"{api_path}/rolebindings", {"metadata": {"name": name}, "roleRef": role, "subjects": [user]}
        )

    async def get(self, plural: str, name: str = "bot") -> Body:
        return await self.call("GET", self.path(plural, name))

    async def list_objects(self, plural: str) -> list[Body]:
        items: list[Body] = (await self.call("GET", self.path(plural)))["items"]
        return items

    async def read_table(self, plural: str) -> Body:
        """Return what `kubectl get` prints."""
        url = self.proxy.target + self.path(plural)
        headers = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
        async with self._session.get(url, headers=headers) as response:
            table: Body = await response.json()
            return table

    async def delete(self, plural: str, name: str = "bot") -> None:
        await self.call("DELETE", self.path(plural, name), {"propagationPolicy": "Background"})

    async def patch_spec(self, spec: Body, name: str = "bot") -> None:
        """Edit the spec as a user or a GitOps tool does."""
        await self.call("PATCH", self.path("finetunejobs", name), {"spec": spec})

    async def finish_job_deletion(self, name: str = "bot", index: int = 1) -> None:
        """Act as the garbage collector for a Job that is deleted in the foreground: delete its pod, then the Job."""
        with suppress(RequestRejected):
            await self.call("DELETE", self.path("pods", f"{name}-{index}"), {"gracePeriodSeconds": 0})
        await self.call("PATCH", self.path("jobs", name), {"metadata": {"finalizers": None}})

    @asynccontextmanager
    async def record_status_history(self) -> AsyncIterator[list[Body]]:
        """Record every status of the FineTuneJobs from now on."""
        statuses, url = list[Body](), f"{self.proxy.target}{self.path('finetunejobs')}?watch=1"
        async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:

            async def follow() -> None:
                async for line in response.content:
                    statuses.append(json.loads(line)["object"].get("status", {}))

            task = asyncio.create_task(follow())
            yield statuses
            await asyncio.sleep(0.1)  # for the last
            task.cancel()

    async def wait_until(self, probe: Callable[[], Awaitable[T | None]], seconds: float = 15) -> T:
        """Return the first true result of `probe`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(RequestRejected):
                if answer := await probe():
                    return answer
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true; the operator did {self.proxy.requests[-10:]}")

    async def wait_for_reason(self, reason: str, name: str = "bot") -> Body:
        """Wait until a condition has this reason. Return the status."""

        async def probe() -> Body | None:
            status: Body = (await self.get("finetunejobs", name)).get("status", {})
            return status if reason in {condition["reason"] for condition in status.get("conditions", [])} else None

        return await self.wait_until(probe)

    async def create_pod(self, name: str = "bot", index: int = 1) -> Body:
        """Create a pod as the Job controller does."""
        job = await self.wait_until(lambda: self.get("jobs", name))
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        template = job["spec"]["template"]
        meta = {**template["metadata"], "name": f"{name}-{index}", "ownerReferences": [owner]}
        pod = {"metadata": meta, "spec": {**template["spec"], "nodeName": "node-1"}}
        return await self.call("POST", self.path("pods"), pod)

    async def report_container_state(self, state: Body, phase: str = "Running", name: str = "bot-1") -> None:
        """Report the state of the trainer container as the kubelet does."""
        entry = {"name": "trainer", "state": state, "ready": True, "restartCount": 0, "image": "x", "imageID": "x"}
        status = {"phase": phase, "podIP": "127.0.0.1", "containerStatuses": [entry]}
        await self.call("PATCH", self.path("pods", name, "status"), {"status": status})

    async def report_job_start(self, start_time: str, name: str = "bot") -> None:
        """Report the start of a Job as the Job controller does."""
        await self.call("PATCH", self.path("jobs", name, "status"), {"status": {"startTime": start_time}})

    async def report_job_end(self, final_type: str, reason: str = "", name: str = "bot", end_time: str = NOW) -> None:
        """Report the end of a Job as the Job controller does. The API server validates the conditions."""
        interim_type = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[final_type]
        conditions = [
            {
                "type": condition_type,
                "status": "True",
                "reason": reason,
                "message": "said",
                "lastTransitionTime": end_time,
            }
            for condition_type in (interim_type, final_type)
        ]
        started = (await self.get("jobs", name)).get("status", {}).get("startTime", end_time)
        status: Body = {"conditions": conditions, "startTime": started, "uncountedTerminatedPods": {}}
        if final_type == "Complete":
            status |= {"completionTime": end_time, "succeeded": 1}
        await self.call("PATCH", self.path("jobs", name, "status"), {"status": status})

    @asynccontextmanager
    async def run_operator(self, *controllers: Controller, **settings: Any) -> AsyncIterator[Manager]:
        """Run the operator in this process with kopf, and with more controllers."""
        operator = Manager(self.settings.model_copy(update=settings))
        for controller in controllers:
            operator.register(controller)
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(kopf.operator(**operator.build_kopf_arguments(), stop_flag=stop, ready_flag=ready))
        try:
            await asyncio.wait_for(ready.wait(), 20)
            yield operator
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)
