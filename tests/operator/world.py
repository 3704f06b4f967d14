"""A namespace of the API server, the operator in it, and what Kubernetes' controllers would do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import aiohttp
import kopf
from tests.operator.bodies import NOW, Body, manifest
from tests.operator.proxies import Proxy

from finetune_operator.manager import Manager
from finetune_operator.settings import Settings

RULES = [  # all that the operator may do; the chart's Role is the same
    {"apiGroups": ["finetune.dev"], "resources": ["finetunejobs"], "verbs": ["list", "watch", "delete"]},
    {"apiGroups": ["finetune.dev"], "resources": ["finetunejobs/status"], "verbs": ["patch"]},
    {"apiGroups": ["finetune.dev"], "resources": ["finetunejobs/finalizers"], "verbs": ["update"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "create"]},
]
LEASE = "operator"


def lease_rules(name: str) -> list[Body]:
    """In the operator's own namespace; the name of what is created cannot be told."""
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
    return [{**leases, "verbs": ["create"]}, {**leases, "resourceNames": [name], "verbs": ["get", "update"]}]


T = TypeVar("T")


class Refused(AssertionError):
    """The API server's refusal of what a test asked for."""


class World:
    """A namespace of the API server, and what the Job controller and the kubelet would do in it."""

    def __init__(self, session: aiohttp.ClientSession, proxy: Proxy, namespace: str, settings: Settings) -> None:
        self._session = session
        self.proxy = proxy
        self.namespace = namespace
        self.settings = settings

    async def call(self, method: str, path: str, body: Body | None = None) -> Body:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        url = self.proxy.target + path
        async with self._session.request(method, url, json=body, headers={"Content-Type": kind}) as response:
            if response.status >= 400:  # by words alone where a path is not served yet
                raise Refused(await response.text())
            answer: Body = await response.json()
            return answer

    def path(self, plural: str, name: str = "", sub: str = "") -> str:
        api = {"jobs": "/apis/batch/v1", "finetunejobs": "/apis/finetune.dev/v1alpha1"}.get(plural, "/api/v1")
        parts = [f"{api}/namespaces/{self.namespace}/{plural}", name, sub]
        return "/".join(part for part in parts if part)

    async def apply(self, name: str = "bot", spec: Body | None = None, **metadata: Any) -> Body:
        return await self.call("POST", self.path("finetunejobs"), manifest(name, self.namespace, spec, **metadata))

    async def allow(self, rules: list[Body], name: str = "operator") -> None:
        """Give the operator these rights in its namespace, by a Role of that name."""
        api = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.namespace}"
        await self.call("POST", f"{api}/roles", {"metadata": {"name": name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}
        await self.call(
            "POST", f"{api}/rolebindings", {"metadata": {"name": name}, "roleRef": role, "subjects": [user]}
        )

    async def get(self, plural: str, name: str = "bot") -> Body:
        return await self.call("GET", self.path(plural, name))

    async def all(self, plural: str) -> list[Body]:
        items: list[Body] = (await self.call("GET", self.path(plural)))["items"]
        return items

    async def delete(self, plural: str, name: str = "bot") -> None:
        await self.call("DELETE", self.path(plural, name), {"propagationPolicy": "Background"})

    async def change(self, spec: Body, name: str = "bot") -> None:
        """What a person or a GitOps tool edits."""
        await self.call("PATCH", self.path("finetunejobs", name), {"spec": spec})

    async def collect(self, name: str = "bot", index: int = 1) -> None:
        """What the garbage collector does about a Job that is deleted in the foreground: its pod goes, then it."""
        with suppress(Refused):
            await self.call("DELETE", self.path("pods", f"{name}-{index}"), {"gracePeriodSeconds": 0})
        await self.call("PATCH", self.path("jobs", name), {"metadata": {"finalizers": None}})

    @asynccontextmanager
    async def history(self) -> AsyncIterator[list[Body]]:
        """Every status that FineTuneJobs have from now on, one after the other."""
        seen, url = list[Body](), f"{self.proxy.target}{self.path('finetunejobs')}?watch=1"
        async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as answer:

            async def follow() -> None:
                async for line in answer.content:
                    seen.append(json.loads(line)["object"].get("status", {}))

            task = asyncio.create_task(follow())
            yield seen
            await asyncio.sleep(0.1)  # for the last
            task.cancel()

    async def until(self, probe: Callable[[], Awaitable[T | None]], seconds: float = 15) -> T:
        """The first answer of `probe` that is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(Refused):
                if answer := await probe():
                    return answer
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true; the operator did {self.proxy.seen[-10:]}")

    async def reason(self, wanted: str, name: str = "bot") -> Body:
        """Wait for the headline's reason; returns the status."""

        async def probe() -> Body | None:
            status: Body = (await self.get("finetunejobs", name)).get("status", {})
            return status if wanted in {each["reason"] for each in status.get("conditions", [])} else None

        return await self.until(probe)

    async def pod(self, name: str = "bot", index: int = 1) -> Body:
        """What the Job controller creates."""
        job = await self.until(lambda: self.get("jobs", name))
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

    async def kubelet(self, state: Body, phase: str = "Running", name: str = "bot-1") -> None:
        """What the kubelet reports."""
        entry = {"name": "trainer", "state": state, "ready": True, "restartCount": 0, "image": "x", "imageID": "x"}
        status = {"phase": phase, "podIP": "127.0.0.1", "containerStatuses": [entry]}
        await self.call("PATCH", self.path("pods", name, "status"), {"status": status})

    async def job_starts(self, at: str, name: str = "bot") -> None:
        """What the Job controller reports when it lets a Job go on."""
        await self.call("PATCH", self.path("jobs", name, "status"), {"status": {"startTime": at}})

    async def job_ends(self, kind: str, reason: str = "", name: str = "bot", at: str = NOW) -> None:
        """What the Job controller reports; the API server checks that the conditions fit together."""
        before = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[kind]
        conditions = [
            {"type": each, "status": "True", "reason": reason, "message": "said", "lastTransitionTime": at}
            for each in (before, kind)
        ]
        started = (await self.get("jobs", name)).get("status", {}).get("startTime", at)
        status: Body = {"conditions": conditions, "startTime": started, "uncountedTerminatedPods": {}}
        if kind == "Complete":
            status |= {"completionTime": at, "succeeded": 1}
        await self.call("PATCH", self.path("jobs", name, "status"), {"status": status})

    @asynccontextmanager
    async def operator(self, **settings: Any) -> AsyncIterator[Manager]:
        """The operator, in this process, with kopf and all."""
        operator = Manager(self.settings.model_copy(update=settings))
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(kopf.operator(**operator.build_kopf_arguments(), stop_flag=stop, ready_flag=ready))
        try:
            await asyncio.wait_for(ready.wait(), 20)
            yield operator
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)
