"""A watched namespace that is deleted, forbidden or failing affects no other, also after a restart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import kopf
import pytest
from tests.support.operator.builders import build_key, get_cache
from tests.support.operator.fault_proxy import build_error_response, pass_through
from tests.support.operator.tenant_namespaces import TenantNamespace, grant_cluster_rights

from finetune_operator.manager import Manager

if TYPE_CHECKING:
    from aiohttp import web
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

HOUR = 3600.0


@pytest.fixture
async def teams(world: NamespaceHarness) -> tuple[TenantNamespace, TenantNamespace]:
    """Return two watched namespaces, the second without permissions. The Lease is in a third one."""
    first, second = TenantNamespace(world), TenantNamespace(world)
    await first.create()
    await second.create()
    world.settings = world.settings.model_copy(
        update={"watch_namespaces": [first.namespace, second.namespace], "resync_interval": 1.0}
    )
    return first, second


async def _is_refused(operator: Manager, team: TenantNamespace) -> bool:
    return team.namespace in operator.namespaces.get_unreadable()


async def _is_ready(operator: Manager) -> bool:
    try:
        return bool(operator.check_readiness())
    except RuntimeError:
        return False


async def _assert_job_created(team: TenantNamespace, name: str) -> None:
    """Assert that a Job is created for a new FineTuneJob."""
    await team.create_finetunejob(name)
    await team.wait_for_reason("JobCreated", name)


async def test_namespace_deleted_others_continue_and_it_recovers(
    world: NamespaceHarness, teams: tuple[TenantNamespace, TenantNamespace]
) -> None:
    first, second = teams
    async with world.run_operator() as operator:
        await _assert_job_created(first, "first")
        await _assert_job_created(second, "first")
        await second.delete_namespace()
        await world.wait_until(lambda: _is_refused(operator, second))
        await _assert_job_created(first, "second")
        assert operator.check_liveness()
        assert operator.check_readiness()
    async with world.run_operator() as operator:
        await world.wait_until(lambda: _is_ready(operator))
        assert await _is_refused(operator, second)
        await _assert_job_created(first, "third")
        await second.create()
        await _assert_job_created(second, "first")
        assert not operator.namespaces.get_unreadable()


async def test_namespace_without_role_at_start_is_watched_once_granted(
    world: NamespaceHarness, teams: tuple[TenantNamespace, TenantNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", HOUR)
    monkeypatch.setattr("finetune_operator.manager._LIST_RETRY_SECONDS", 0.3)  # lists that failed, and no others
    first, second = teams
    await second.revoke_rights()
    await second.create_finetunejob("waiting")
    async with world.run_operator(resync_interval=HOUR) as operator:
        await _assert_job_created(first, "first")
        assert await _is_refused(operator, second)
        await second.grant_rights()
        await second.wait_for_reason("JobCreated", "waiting")
        await _assert_job_created(second, "first")
        await _assert_job_created(first, "second")


async def test_operator_all_namespaces_forbidden_stays_alive_and_unready(
    world: NamespaceHarness, teams: tuple[TenantNamespace, TenantNamespace]
) -> None:
    first, second = teams
    await first.revoke_rights()
    await second.revoke_rights()
    async with world.run_operator() as operator:
        await world.wait_until(lambda: _is_refused(operator, second))
        with pytest.raises(RuntimeError, match="none of the watched namespaces can be read"):
            operator.check_readiness()
        for state in operator.namespaces.states.values():
            state.last_contact -= HOUR
        await operator.retry_failed_lists()
        assert operator.check_liveness()
        await first.grant_rights()
        await world.wait_until(lambda: _is_ready(operator))
        await _assert_job_created(first, "first")


async def test_watch_forbidden_for_long_keeps_process_and_resumes(
    world: NamespaceHarness, teams: tuple[TenantNamespace, TenantNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the next list, only kopf notices that the namespace is forbidden."""
    monkeypatch.setattr(
        "finetune_operator.kopf_settings._WATCH_INACTIVITY_SECONDS", 1.0
    )  # then a watch begins again, and is refused
    monkeypatch.setattr("finetune_operator.kopf_settings._INITIAL_BACKOFFS", (0.01,) * 8)
    monkeypatch.setattr("finetune_operator.kopf_settings._MAX_BACKOFF", 0.01)
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", HOUR)
    first, second = teams
    async with world.run_operator(resync_interval=HOUR):
        await _assert_job_created(second, "first")
        await second.revoke_rights()
        since = len(world.proxy.requests)
        await world.wait_until(lambda: _was_listed_often(world, second, since))
        await _assert_job_created(first, "first")
        await second.grant_rights()
        await _assert_job_created(second, "second")


async def _was_listed_often(world: NamespaceHarness, team: TenantNamespace, since: int) -> bool:
    return world.proxy.requests[since:].count(("GET", team.path("finetunejobs"))) > 30  # kopf's default ends after nine


@pytest.mark.parametrize("status", [429, 500, 504])
async def test_namespace_failing_at_start_delays_no_other(
    world: NamespaceHarness, teams: tuple[TenantNamespace, TenantNamespace], status: int
) -> None:
    first, second = teams

    async def fail_namespace(request: web.Request) -> web.StreamResponse | None:
        return build_error_response(status) if f"/{second.namespace}/" in request.path else None

    world.proxy.interceptor = fail_namespace
    async with world.run_operator() as operator:
        await _assert_job_created(first, "first")
        assert operator.check_readiness()
        assert operator.namespaces.get_unreadable() == set()
        world.proxy.interceptor = pass_through
        await _assert_job_created(second, "first")


async def test_namespace_partly_readable_gets_no_writes(
    world: NamespaceHarness, teams: tuple[TenantNamespace, TenantNamespace]
) -> None:
    """The cached state may be outdated: here, the Job seems to be missing."""
    first, second = teams

    async def forbid_pods(request: web.Request) -> web.StreamResponse | None:
        return build_error_response(403) if request.path == second.path("pods") else None

    async with world.run_operator() as operator:
        await _assert_job_created(second, "first")
        world.proxy.interceptor = forbid_pods
        await world.wait_until(lambda: _is_refused(operator, second))
        get_cache(operator).jobs.clear()
        since = len(world.proxy.list_writes())
        for _ in range(5):
            operator.workers.enqueue(build_key("first", second.namespace))
            await asyncio.sleep(0.2)
        await _assert_job_created(first, "first")
        assert not [path for _, path in world.proxy.list_writes()[since:] if second.namespace in path]
        assert get_cache(operator).get_finetunejob(build_key("first", second.namespace))
        assert operator.workers.queue
        assert operator.workers.queue.get_depth() == 0
        await second.delete("jobs", "first")
        world.proxy.interceptor = pass_through
        await world.wait_until(lambda: second.get("jobs", "first"))


async def test_operator_cluster_scope_waits_for_permission_then_works(
    world: NamespaceHarness, teams: tuple[TenantNamespace, TenantNamespace]
) -> None:
    """With permissions from a ClusterRole, a deleted namespace has an empty list."""
    first, second = teams
    operator = Manager(world.settings.model_copy(update={"watch_namespaces": []}))
    with pytest.raises(kopf.TemporaryError, match=r"403 Forbidden.*at the cluster scope"):
        await operator.start()
    async with grant_cluster_rights(world), world.run_operator(watch_namespaces=[]) as operator:
        await _assert_job_created(first, "first")
        await _assert_job_created(second, "first")
        await second.delete_namespace()
        await world.wait_until(lambda: _is_forgotten(operator, second))
        await _assert_job_created(first, "second")
        assert operator.check_readiness()
        await second.create()
        await _assert_job_created(second, "first")


async def _is_forgotten(operator: Manager, team: TenantNamespace) -> bool:
    return all(key.namespace != team.namespace for key in get_cache(operator).finetunejobs.list_keys())
