"""Builders of bodies, a real API server behind a proxy that fails on demand, and the operator in this process."""

from __future__ import annotations

import asyncio
import copy
import json
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp
import kopf
import pytest
from aiohttp import web

from finetune_operator.crd import custom_resource_definition
from finetune_operator.handlers import Operator
from finetune_operator.settings import Settings
from local_cluster import tools

Body = dict[str, Any]
TOKEN, OPERATOR_TOKEN = secrets.token_hex(16), secrets.token_hex(16)
RULES = [  # all that the operator may do; the chart's Role is the same
    {"apiGroups": ["finetune.dev"], "resources": ["finetunejobs"], "verbs": ["list", "watch", "delete"]},
    {"apiGroups": ["finetune.dev"], "resources": ["finetunejobs/status"], "verbs": ["patch"]},
    {"apiGroups": ["finetune.dev"], "resources": ["finetunejobs/finalizers"], "verbs": ["update"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "create"]},
]
T = TypeVar("T")
NOW = "2026-11-23T08:00:00Z"


# --- builders -------------------------------------------------------------------------------------------------------


def merged(base: Body, changes: Body) -> Body:
    """`base` with `changes`, dicts merged, None removing."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def manifest(name: str = "bot", namespace: str = "team", spec: Body | None = None, **metadata: Any) -> Body:
    """A FineTuneJob as a person writes it."""
    base = {
        "model": {"uri": "hf://org/name"},
        "dataset": {"sources": [{"uri": "s3://bucket/data.jsonl"}]},
        "training": {"epochs": 1},
        "output": {"uri": "s3://bucket/adapters/{namespace}/{name}"},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": merged(base, spec or {}),
    }


def stored(name: str = "bot", spec: Body | None = None, **metadata: Any) -> Body:
    """A FineTuneJob as the API server gives it."""
    known = {"uid": "uid-bot", "generation": 1, "resourceVersion": "10", "creationTimestamp": NOW}
    return manifest(name, spec=spec, **{**known, **metadata})


def job_body(conditions: dict[str, tuple[str, str]] | None = None, suspend: bool = False, **status: Any) -> Body:
    """A Job as the Job controller leaves it; conditions as {type: (reason, message)}."""
    true = [
        {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}
        for kind, (reason, message) in (conditions or {}).items()
    ]
    return {
        "metadata": {"name": "bot", "namespace": "team", "uid": "uid-job", "creationTimestamp": NOW},
        "spec": {"suspend": suspend},
        "status": {**status, "conditions": true},
    }


def pod_body(name: str = "bot-1", state: Body | None = None, phase: str = "Pending", **more: Any) -> Body:
    """A pod as the kubelet leaves it; `state` is the trainer container's."""
    statuses = [{"name": "istio-proxy", "state": {"running": {}}}, {"name": "trainer", "state": state}]
    created = more.pop("created", NOW)
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "creationTimestamp": created},
        "spec": {"nodeName": more.pop("node", "node-1")},
        "status": {"phase": phase, "containerStatuses": statuses if state else None, **more},
    }


def ended_state(code: int, message: str = "", reason: str = "Error") -> Body:
    """The trainer container's state after its end."""
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": NOW, "finishedAt": NOW}}


class Build:
    """The builders in one hand: with importlib mode a test cannot import a module of helpers."""

    manifest = staticmethod(manifest)
    stored = staticmethod(stored)
    job = staticmethod(job_body)
    pod = staticmethod(pod_body)
    ended = staticmethod(ended_state)
    now = NOW


@pytest.fixture
def build() -> type[Build]:
    """See `Build`."""
    return Build


# --- kstatus --------------------------------------------------------------------------------------------------------

Kstatus = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="session")
def kstatus() -> Kstatus:
    """What Flux, Argo CD's peers and `helm --wait` take objects for, by the library that they use."""
    tools.ensure()

    def compute(*objects: Body) -> list[dict[str, str]]:
        lines = "\n".join(map(json.dumps, objects))
        done = subprocess.run([tools.program("kstatus")], input=lines, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return compute


# --- a real API server ----------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port: int = each.getsockname()[1]
        return port


def _start(folder: Path, command: list[Path | str]) -> subprocess.Popen[bytes]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a kube-apiserver with the CRD. No controllers run: the tests play them."""
    tools.ensure()
    etcd, apiserver = tools.program("etcd"), tools.program("kube-apiserver")
    folder = tmp_path_factory.mktemp("api-server")
    client, peer, port = (_free_port() for _ in range(3))
    (folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n{OPERATOR_TOKEN},operator,operator\n')
    subprocess.run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    processes = [_start(folder, [etcd, *_etcd_flags(folder, client, peer)])]
    flags = {
        "etcd-servers": f"http://127.0.0.1:{client}",
        "secure-port": port,
        "bind-address": "127.0.0.1",
        "cert-dir": folder / "certs",
        "service-account-key-file": "sa.key",
        "service-account-signing-key-file": "sa.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "token-auth-file": "tokens.csv",
        "authorization-mode": "RBAC",
        "service-cluster-ip-range": "10.0.0.0/24",
        "disable-admission-plugins": "ServiceAccount",
        "enable-admission-plugins": "OwnerReferencesPermissionEnforcement",  # as OpenShift has it
    }
    processes.append(_start(folder, [apiserver, *(f"--{key}={value}" for key, value in flags.items())]))
    try:
        url = f"https://127.0.0.1:{port}"
        asyncio.run(_prepare(url))
        yield url
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _etcd_flags(folder: Path, client: int, peer: int) -> list[str]:
    flags = {f"{kind}-client-urls": f"http://127.0.0.1:{client}" for kind in ("listen", "advertise")}
    flags |= {f"{kind}-peer-urls": f"http://127.0.0.1:{peer}" for kind in ("listen", "initial-advertise")}
    flags |= {"initial-cluster": f"default=http://127.0.0.1:{peer}", "data-dir": f"{folder}/etcd"}
    return ["--unsafe-no-fsync", *(f"--{key}={value}" for key, value in flags.items())]


async def _prepare(url: str) -> None:
    async with _session() as session:
        deadline = time.monotonic() + 50
        while not await _answers(session, f"{url}/readyz"):
            assert time.monotonic() < deadline, "kube-apiserver does not get ready"
            await asyncio.sleep(0.2)
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        async with session.post(url + path, json=custom_resource_definition()) as response:
            assert response.status == 201, await response.text()
        while not await _answers(session, f"{url}/apis/finetune.dev/v1alpha1/finetunejobs"):
            await asyncio.sleep(0.1)


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def _session(token: str = TOKEN) -> AsyncIterator[aiohttp.ClientSession]:
    """A session as administrator, or as the operator."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), headers=headers) as session:
        yield session
    await asyncio.sleep(0.1)  # https://docs.aiohttp.org/en/stable/client_advanced.html#graceful-shutdown


# --- a proxy that fails on demand -----------------------------------------------------------------------------------


@dataclass
class Fault:
    """What to answer instead."""

    method: str
    part: str
    status: int
    late: bool
    headers: dict[str, str]


class Served:
    """A web server in a thread of its own: when kopf stops, it cancels every task of its loop, whoever made it."""

    def __init__(self) -> None:
        self.port = _free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    async def open(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def close(self) -> None:
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


Trouble = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""What happens to a request before it is passed on; an answer is given instead."""


async def healthy(_: web.Request) -> None:
    """Nothing."""


def failure(status: int, **headers: str) -> web.Response:
    """What an API server in trouble says."""
    body = {"kind": "Status", "status": "Failure", "reason": "Injected", "message": "injected", "code": status}
    return web.json_response(
        body, status=status, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )


class Proxy(Served):
    """Stands between operator and API server."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.selectors: dict[str, set[str]] = {}
        """Which label selectors each collection was read with."""
        self.calls = 0
        """Requests but for watches."""
        self.dies_at: int | None = None
        """The call whose answer the operator does not live to see."""
        self.died = threading.Event()
        self.trouble: Trouble = healthy

    async def open(self) -> None:
        self._stack = AsyncExitStack()
        self._session = await self._stack.enter_async_context(_session(OPERATOR_TOKEN))
        await super().open()

    async def close(self) -> None:
        await super().close()
        await self._stack.aclose()

    def fail(self, method: str, part: str, status: int, late: bool = False, **headers: str) -> None:
        """Fail the next request of that method with that part in its path; if `late`, after it had its effect."""
        self.faults.append(Fault(method, part, status, late, headers))

    def writes(self) -> list[tuple[str, str]]:
        """What changed something, Events apart."""
        return [each for each in self.seen if each[0] != "GET" and not each[1].endswith("/events")]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, request.path))
        self.calls += "watch" not in request.query
        if answer := await self.trouble(request):
            return answer
        if request.method == "GET":
            plural = request.path.rpartition("/")[2]
            self.selectors.setdefault(plural, set()).add(request.query.get("labelSelector", ""))
        fault = self._fault(request)
        if fault and not fault.late:
            return failure(fault.status, **fault.headers)
        data = await request.read() or None  # an empty body would be given a content type
        headers = {key: value for key, value in request.headers.items() if key in ("Content-Type", "Accept")}
        url = self.target + request.path_qs
        async with self._session.request(
            request.method, url, data=data, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        ) as answer:
            if fault:
                await answer.read()
                return failure(fault.status, **fault.headers)
            if self._dies(request):
                await answer.read()
                self.died.set()
                await asyncio.sleep(60)  # nobody waits for it
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            with suppress(ConnectionResetError):  # the operator was killed
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            return response

    def _dies(self, request: web.Request) -> bool:
        return self.died.is_set() or ("watch" not in request.query and self.calls == self.dies_at)

    def _fault(self, request: web.Request) -> Fault | None:
        found = next((f for f in self.faults if f.method == request.method and f.part in request.path), None)
        if found:
            self.faults.remove(found)
        return found


class Trainer(Served):
    """A pod's `GET /progress`: answers with `answer`, or as `handler` says."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Any = {}
        self.handler: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        return await self.handler(request) if self.handler else web.json_response(self.answer)


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    """A trainer that says how far it is."""
    with Trainer() as trainer:
        yield trainer


# --- everything together --------------------------------------------------------------------------------------------


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
            answer: Body = await response.json()
            if response.status >= 400:
                raise Refused(str(answer))
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
    async def operator(self) -> AsyncIterator[Operator]:
        """The operator, in this process, with kopf and all."""
        operator = Operator(self.settings)
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(
            kopf.operator(
                registry=operator.registry(),
                namespaces=self.settings.watch_namespaces,
                standalone=True,
                stop_flag=stop,
                ready_flag=ready,
            )
        )
        try:
            await asyncio.wait_for(ready.wait(), 20)
            yield operator
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)


@pytest.fixture
async def world(api_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """An empty namespace, reached by the operator through a proxy."""
    async with _session() as session:
        with Proxy(api_server) as proxy:
            monkeypatch.setenv("KUBECONFIG", str(_kubeconfig(tmp_path, f"http://127.0.0.1:{proxy.port}")))
            namespace = f"test-{secrets.token_hex(4)}"
            settings = Settings(
                watch_namespaces=[namespace], resync_interval=30, progress_interval=0.2, request_timeout=5, workers=2
            )
            world = World(session, proxy, namespace, settings)
            await world.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            await world.allow(RULES)
            yield world


def _kubeconfig(folder: Path, server: str) -> Path:
    path = folder / "kubeconfig"
    path.write_text(f"""
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
clusters: [{{name: test, cluster: {{server: "{server}"}}}}]
users: [{{name: test, user: {{}}}}]
""")
    return path
