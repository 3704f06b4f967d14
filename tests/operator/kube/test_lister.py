"""Complete lists fill the caches. An error affects only its namespace, and a restore of etcd is detected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from tests.support.operator.builders import build_key
from tests.support.operator.fault_proxy import ThreadedServer, build_error_response

from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.kube.client import FINETUNESCHEDULES, KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.lister import Lister
from finetune_operator.kube.namespace_access import NamespaceRegistry
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.kube.transport import Transport

if TYPE_CHECKING:
    from tests.support.operator.builders import Body, Builders

TEAMS = ["team-a", "team-b"]
KINDS = ("finetunejobs", "jobs", "pods")


class ListServer(ThreadedServer):
    """An API server that only supports lists."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 500
        self.finetunejobs: dict[str, list[Body]] = {}
        self.statuses: dict[tuple[str, str], int] = {}
        """Status with which requests are refused, by namespace and plural. 0 delays the response by a minute."""

    def respond_with(self, namespace: str, status: int, *plurals: str) -> None:
        self.statuses |= {(namespace, plural): status for plural in plurals or KINDS}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.split("/")
        namespace, plural = (parts[-2] if "namespaces" in parts else ""), parts[-1]
        status = self.statuses.get((namespace, plural), 200)
        if status == 0:
            await asyncio.sleep(60)
        if status != 200:
            return build_error_response(status)
        items = self.finetunejobs.get(namespace, []) if plural == "finetunejobs" else []
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    async def log_in(self) -> Configuration:
        return Configuration(host=f"http://127.0.0.1:{self.port}")


class ListerHarness:
    """A lister with its cache and its server."""

    def __init__(self, server: ListServer, transport: Transport) -> None:
        self.server = server
        self.transport = transport
        self.cache = FineTuneJobCache()
        self.watch(TEAMS)

    def watch(self, names: Sequence[str | None]) -> None:
        self.namespaces = NamespaceRegistry(names)
        self.lister = Lister(KubeClient(self.transport, lambda: True), self.namespaces)
        self.lister.add_informer(self.cache)

    async def update(self) -> set[str | None]:
        return await self.lister.refresh(self.namespaces.get_scopes())

    def versions(self) -> dict[tuple[str, str], str]:
        metadata = (body["metadata"] for body in self.cache.finetunejobs)
        return {(meta["namespace"], meta["name"]): meta["resourceVersion"] for meta in metadata}


@pytest.fixture
async def listing() -> AsyncIterator[ListerHarness]:
    with ListServer() as server:
        transport = Transport(timeout=0.5)
        await transport.open(server.log_in)
        yield ListerHarness(server, transport)
        await transport.close()


def _build_body(build: type[Builders], namespace: str, name: str, version: int, **spec: Any) -> Body:
    body = build.finetunejob(name, uid=f"{namespace}-{name}", spec=spec)
    return {**body, "metadata": {**body["metadata"], "namespace": namespace, "resourceVersion": str(version)}}


def _serve_one_job_per_team(listing: ListerHarness, build: type[Builders]) -> None:
    listing.server.finetunejobs = {team: [_build_body(build, team, "bot", 9)] for team in TEAMS}


@pytest.mark.parametrize("status", [403, 429, 500, 0])
@pytest.mark.parametrize("plural", KINDS)
async def test_lister_one_kind_failing_in_namespace_lists_others(
    listing: ListerHarness, build: type[Builders], status: int, plural: str
) -> None:
    _serve_one_job_per_team(listing, build)
    listing.server.respond_with("team-b", status, plural)
    assert await listing.update() == {"team-a"}
    assert listing.versions() == {("team-a", "bot"): "9"}
    assert listing.namespaces.get_failed_scopes() == ["team-b"]
    assert [team for team in TEAMS if team in listing.cache.unreadable_namespaces] == ["team-b"] * (status == 403)


async def test_lister_forbidden_namespace_keeps_objects_until_listed(
    listing: ListerHarness, build: type[Builders]
) -> None:
    _serve_one_job_per_team(listing, build)
    await listing.update()
    listing.server.respond_with("team-b", 403)
    await listing.update()
    assert set(listing.versions()) == {("team-a", "bot"), ("team-b", "bot")}
    listing.server.respond_with("team-b", 200)
    listing.server.finetunejobs["team-b"] = []
    assert await listing.update() == set(TEAMS)
    assert set(listing.versions()) == {("team-a", "bot")}
    assert not any(team in listing.cache.unreadable_namespaces for team in TEAMS)


async def test_lister_missing_namespace_is_forgotten(listing: ListerHarness, build: type[Builders]) -> None:
    _serve_one_job_per_team(listing, build)
    await listing.update()
    listing.server.respond_with("team-b", 404)
    await listing.update()
    assert set(listing.versions()) == {("team-a", "bot")}
    assert listing.namespaces.get_unreadable() == {"team-b"}


async def test_lister_missing_crd_is_no_missing_namespace(listing: ListerHarness, build: type[Builders]) -> None:
    _serve_one_job_per_team(listing, build)
    await listing.update()
    for team in TEAMS:
        listing.server.respond_with(team, 404, "finetunejobs")
    assert await listing.update() == set()
    assert set(listing.versions()) == {("team-a", "bot"), ("team-b", "bot")}
    assert listing.namespaces.get_unreadable() == set()
    assert "404" in str(listing.namespaces.get_list_errors()[0])


async def test_lister_cluster_scope_forbidden_is_error(listing: ListerHarness) -> None:
    listing.watch([None])
    listing.server.respond_with("", 403)
    assert await listing.update() == set()
    assert "403" in str(listing.namespaces.get_list_errors()[0])
    assert listing.namespaces.get_unreadable() == set()


async def test_lister_etcd_restored_replaces_cache(listing: ListerHarness, build: type[Builders]) -> None:
    server = listing.server
    server.finetunejobs = {
        "team-a": [_build_body(build, "team-a", "old", 525), _build_body(build, "team-a", "new", 526)],
        "team-b": [_build_body(build, "team-b", "bot", 9)],
    }
    server.version = 530
    await listing.update()
    server.finetunejobs["team-a"] = [_build_body(build, "team-a", "old", 237, suspend=True)]
    server.version = 240
    await listing.update()
    assert listing.versions() == {("team-a", "old"): "237", ("team-b", "bot"): "9"}
    server.finetunejobs["team-a"] = [_build_body(build, "team-a", "old", 250)]
    server.version = 251
    await listing.update()
    assert listing.versions()["team-a", "old"] == "250"


async def test_lister_overtaken_by_watch_event_keeps_newer_object(
    listing: ListerHarness, build: type[Builders]
) -> None:
    """The list was requested earlier, so its lower version does not mean that etcd was restored."""
    _serve_one_job_per_team(listing, build)
    await listing.update()
    task = asyncio.create_task(listing.update())
    await asyncio.sleep(0)
    listing.cache.finetunejobs.update(build_key("bot", "team-a"), _build_body(build, "team-a", "bot", 600))
    await task
    assert listing.versions()["team-a", "bot"] == "600"


def _list_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "are not reconciled" in record.getMessage()]


@pytest.mark.parametrize("status", [403, 404])
async def test_lister_optional_kind_that_one_namespace_refuses_is_logged_once_and_again_after_it_was_read(
    listing: ListerHarness, build: type[Builders], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    _serve_one_job_per_team(listing, build)
    listing.lister.add_informer(OwnerCache(SCHEDULE_KIND, FINETUNESCHEDULES))
    listing.server.respond_with("team-a", status, "finetuneschedules")
    for _ in range(3):
        assert await listing.update() == set(TEAMS)
    assert set(listing.versions()) == {("team-a", "bot"), ("team-b", "bot")}
    (warning,) = _list_warnings(caplog)
    assert warning.startswith("finetuneschedules are not reconciled in the namespace team-a")
    listing.server.respond_with("team-a", 200, "finetuneschedules")
    await listing.update()
    listing.server.respond_with("team-a", status, "finetuneschedules")
    await listing.update()
    assert len(_list_warnings(caplog)) == 2
