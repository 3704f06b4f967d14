"""A watched namespace that is deleted, forbidden or failing stops no other, also through a restart of the operator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import kopf
import pytest
from tests.operator.proxies import failure, healthy
from tests.operator.teams import Team, cluster_rights

from finetune_operator.manager import Manager

if TYPE_CHECKING:
    from aiohttp import web
    from tests.operator.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

HOUR = 3600.0


@pytest.fixture
async def teams(world: World) -> tuple[Team, Team]:
    """Two namespaces that the operator watches, the second one without rights; the Lease is in a third."""
    one, other = Team(world), Team(world)
    await one.create()
    await other.create()
    world.settings = world.settings.model_copy(
        update={"watch_namespaces": [one.namespace, other.namespace], "resync_interval": 1.0}
    )
    return one, other


async def _is_refused(operator: Manager, team: Team) -> bool:
    return team.namespace in operator.namespaces.get_unreadable()


async def _is_ready(operator: Manager) -> bool:
    try:
        return bool(operator.check_readiness())
    except RuntimeError:
        return False


async def _work(team: Team, name: str) -> None:
    """See that a new FineTuneJob gets its Job."""
    await team.apply(name)
    await team.reason("JobCreated", name)


async def test_namespace_deleted_others_go_on_and_it_comes_back(world: World, teams: tuple[Team, Team]) -> None:
    one, other = teams
    async with world.operator() as operator:
        await _work(one, "first")
        await _work(other, "first")
        await other.vanish()
        await world.until(lambda: _is_refused(operator, other))
        await _work(one, "second")
        assert operator.check_liveness()
        assert operator.check_readiness()
    async with world.operator() as operator:
        await world.until(lambda: _is_ready(operator))
        assert await _is_refused(operator, other)
        await _work(one, "third")
        await other.create()
        await _work(other, "first")
        assert not operator.namespaces.get_unreadable()


async def test_namespace_without_role_from_the_start_is_watched_once_it_has_one(
    world: World, teams: tuple[Team, Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", HOUR)
    monkeypatch.setattr("finetune_operator.manager._LIST_RETRY_SECONDS", 0.3)  # lists that failed, and no others
    one, other = teams
    await other.forbid()
    await other.apply("waiting")
    async with world.operator(resync_interval=HOUR) as operator:
        await _work(one, "first")
        assert await _is_refused(operator, other)
        await other.create_rights()
        await other.reason("JobCreated", "waiting")
        await _work(other, "first")
        await _work(one, "second")


async def test_all_namespaces_refused_operator_waits_alive_and_unready(world: World, teams: tuple[Team, Team]) -> None:
    one, other = teams
    await one.forbid()
    await other.forbid()
    async with world.operator() as operator:
        await world.until(lambda: _is_refused(operator, other))
        with pytest.raises(RuntimeError, match="none of the watched namespaces can be read"):
            operator.check_readiness()
        for state in operator.namespaces.states.values():
            state.last_contact -= HOUR
        await operator.retry_failed_lists()
        assert operator.check_liveness()
        await one.create_rights()
        await world.until(lambda: _is_ready(operator))
        await _work(one, "first")


async def test_watch_refused_for_long_ends_no_process_and_resumes(
    world: World, teams: tuple[Team, Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any list tells, only kopf knows that the namespace is forbidden."""
    monkeypatch.setattr(
        "finetune_operator.kopf_settings._WATCH_INACTIVITY_SECONDS", 1.0
    )  # then a watch begins again, and is refused
    monkeypatch.setattr("finetune_operator.kopf_settings._INITIAL_BACKOFFS", (0.01,) * 8)
    monkeypatch.setattr("finetune_operator.kopf_settings._MAX_BACKOFF", 0.01)
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", HOUR)
    one, other = teams
    async with world.operator(resync_interval=HOUR):
        await _work(other, "first")
        await other.forbid()
        since = len(world.proxy.seen)
        await world.until(lambda: _was_asked_often(world, other, since))
        await _work(one, "first")
        await other.create_rights()
        await _work(other, "second")


async def _was_asked_often(world: World, team: Team, since: int) -> bool:
    return world.proxy.seen[since:].count(("GET", team.path("finetunejobs"))) > 30  # kopf's default ends after nine


@pytest.mark.parametrize("status", [429, 500, 504])
async def test_namespace_failing_from_the_start_delays_no_other(
    world: World, teams: tuple[Team, Team], status: int
) -> None:
    one, other = teams

    async def failing(request: web.Request) -> web.StreamResponse | None:
        return failure(status) if f"/{other.namespace}/" in request.path else None

    world.proxy.trouble = failing
    async with world.operator() as operator:
        await _work(one, "first")
        assert operator.check_readiness()
        assert operator.namespaces.get_unreadable() == set()
        world.proxy.trouble = healthy
        await _work(other, "first")


async def test_namespace_readable_in_part_nothing_is_written_there(world: World, teams: tuple[Team, Team]) -> None:
    """What is known of it may be wrong by now: here, that the Job is missing."""
    one, other = teams

    async def pods_refused(request: web.Request) -> web.StreamResponse | None:
        return failure(403) if request.path == other.path("pods") else None

    async with world.operator() as operator:
        await _work(other, "first")
        world.proxy.trouble = pods_refused
        await world.until(lambda: _is_refused(operator, other))
        operator.cache.jobs.clear()
        since = len(world.proxy.writes())
        for _ in range(5):
            operator.workers.enqueue((other.namespace, "first"))
            await asyncio.sleep(0.2)
        await _work(one, "first")
        assert not [path for _, path in world.proxy.writes()[since:] if other.namespace in path]
        assert operator.cache.get_finetunejob((other.namespace, "first"))
        assert operator.workers.queue
        assert operator.workers.queue.get_depth() == 0
        await other.delete("jobs", "first")
        world.proxy.trouble = healthy
        await world.until(lambda: other.get("jobs", "first"))


async def test_whole_cluster_waits_for_the_right_and_follows_namespaces(world: World, teams: tuple[Team, Team]) -> None:
    """With rights by a ClusterRole, a namespace that is gone has an empty list."""
    one, other = teams
    operator = Manager(world.settings.model_copy(update={"watch_namespaces": []}))
    with pytest.raises(kopf.TemporaryError, match=r"403 Forbidden.*at the cluster scope"):
        await operator.start(kopf.OperatorSettings())
    async with cluster_rights(world), world.operator(watch_namespaces=[]) as operator:
        await _work(one, "first")
        await _work(other, "first")
        await other.vanish()
        await world.until(lambda: _is_forgotten(operator, other))
        await _work(one, "second")
        assert operator.check_readiness()
        await other.create()
        await _work(other, "first")


async def _is_forgotten(operator: Manager, team: Team) -> bool:
    return all(key[0] != team.namespace for key in operator.cache.finetunejobs.list_keys())
