"""Namespaces that are selected by label come and go, and no other notices it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import kopf
import pytest
from tests.support.operator.builders import get_cache
from tests.support.operator.fault_proxy import build_error_response
from tests.support.operator.tenant_namespaces import TenantNamespace, grant_cluster_rights

from finetune_operator.manager import Manager

if TYPE_CHECKING:
    from aiohttp import web
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

SELECTOR = "finetune.dev/enabled=true,team notin (c)"
HOUR = 3600.0


@pytest.fixture
async def selecting_world(world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NamespaceHarness]:
    """Return a namespace whose operator selects others by label, with the permissions of a ClusterRole."""
    monkeypatch.setattr("finetune_operator.manager._SELECT_NAMESPACES_SECONDS", 0.3)
    settings = {"watch_namespaces": [], "watch_namespace_selector": SELECTOR, "resync_interval": HOUR}
    world.settings = world.settings.model_copy(update=settings)
    async with grant_cluster_rights(world):
        yield world


async def _create_team(world: NamespaceHarness, **labels: str | None) -> TenantNamespace:
    """Create a namespace with the selected label."""
    team = TenantNamespace(world)
    await team.create()
    await _set_labels(team, **{"finetune.dev/enabled": "true", **labels})
    return team


async def _set_labels(namespace: TenantNamespace, **labels: str | None) -> None:
    await namespace.call("PATCH", f"/api/v1/namespaces/{namespace.namespace}", {"metadata": {"labels": labels}})


async def _assert_job_created(team: TenantNamespace, name: str) -> None:
    await team.create_finetunejob(name)
    await team.wait_for_reason("JobCreated", name)


async def _assert_left_alone(world: NamespaceHarness, operator: Manager, team: TenantNamespace) -> None:
    """Assert that the operator neither writes to a namespace, nor keeps its objects, nor counts it in its metrics."""
    await world.wait_until(lambda: _is_forgotten(operator, team))
    since = len(world.proxy.list_writes())
    await team.create_finetunejob("ignored")
    await _wait_for_selections(world, 3)
    assert not [path for _, path in world.proxy.list_writes()[since:] if team.namespace in path]
    assert await _is_forgotten(operator, team)


async def _wait_for_selections(world: NamespaceHarness, count: int) -> None:
    """Wait until the operator has listed the selected namespaces that often."""
    since = len(world.proxy.requests)

    async def probe() -> bool:
        return world.proxy.requests[since:].count(("GET", "/api/v1/namespaces")) >= count

    await world.wait_until(probe)


async def _is_forgotten(operator: Manager, team: TenantNamespace) -> bool:
    cache = get_cache(operator)
    keys = [*cache.finetunejobs.list_keys(), *cache.jobs.list_keys(), *cache.pods.list_keys()]
    samples = [sample for metric in operator.collect() if metric.name == "finetune_jobs" for sample in metric.samples]
    exposed_namespaces = {sample.labels["namespace"] for sample in samples}
    return team.namespace not in {*exposed_namespaces, *(key.namespace for key in keys)}


async def test_selected_namespaces_come_and_go_and_others_are_unaffected(selecting_world: NamespaceHarness) -> None:
    world = selecting_world
    steady, changing = await _create_team(world), await _create_team(world)
    other = await _create_team(world, team="c")
    await changing.create_finetunejob("before")
    async with world.run_operator() as operator:
        await changing.wait_for_reason("JobCreated", "before")
        await _assert_job_created(steady, "first")
        await _assert_left_alone(world, operator, other)

        await _set_labels(changing, **{"finetune.dev/enabled": None})
        await _assert_left_alone(world, operator, changing)
        await _assert_job_created(steady, "second")

        await _set_labels(changing, **{"finetune.dev/enabled": "true"})
        await changing.wait_for_reason("JobCreated", "ignored")

        await changing.delete_namespace()
        await world.wait_until(lambda: _is_forgotten(operator, changing))
        await _assert_job_created(steady, "third")
        await changing.create()
        await _set_labels(changing, **{"finetune.dev/enabled": "true"})
        await _assert_job_created(changing, "before")

        await _set_labels(other, team="d")
        await other.wait_for_reason("JobCreated", "ignored")
        assert operator.check_readiness()
        assert not operator.namespaces.get_unreadable()


async def test_selected_namespaces_none_is_alive_and_ready(selecting_world: NamespaceHarness) -> None:
    world = selecting_world
    async with world.run_operator() as operator:
        assert operator.check_readiness()
        await _assert_job_created(await _create_team(world), "first")


async def test_selected_namespaces_list_fails_keeps_known_ones(
    selecting_world: NamespaceHarness, caplog: pytest.LogCaptureFixture
) -> None:
    world = selecting_world
    team = await _create_team(world)

    async def forbid_namespaces(request: web.Request) -> web.StreamResponse | None:
        return build_error_response(403) if request.path == "/api/v1/namespaces" else None

    async with world.run_operator() as operator:
        world.proxy.interceptor = forbid_namespaces
        await _assert_job_created(team, "first")
        await _wait_for_selections(world, 3)
        await _assert_job_created(team, "second")
        assert operator.check_liveness()
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if "failed to list namespaces" in message]) == 1


async def test_selected_namespaces_without_permission_retries_start(world: NamespaceHarness) -> None:
    operator = Manager(world.settings.model_copy(update={"watch_namespaces": [], "watch_namespace_selector": SELECTOR}))
    with pytest.raises(kopf.TemporaryError, match=r"403 Forbidden.*namespaces"):
        await operator.start()
