"""The operator polls running pods for progress, and unresponsive pods delay only their namespace."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.support.operator.builders import (
    NOW,
    Body,
    build_job,
    build_key,
    build_pod,
    build_terminated_state,
    get_cache,
)
from tests.support.operator.cached_runs import RUNNING, set_owner, store_run

from finetune_operator.controller.finetunejob import progress_poller
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.manager import Manager
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.fault_proxy import FakeTrainer

GOOD = {"stage": "Training", "percentage": 40, "step": 4, "totalSteps": 10, "loss": 1.25, "lastUpdateTime": "t"}
HONEST_RUNS = 16
HONEST, SILENT = "127.0.0.1", "127.0.0.2"


def _store_pod(
    cache: FineTuneJobCache, owner: str, name: str = "another", created: str = NOW, state: Body = RUNNING
) -> None:
    """Store another pod with the label of the run `bot`."""
    pod = build_pod(name, state, "Running", podIP=HONEST, created=created)
    cache.pods.update(build_key(), set_owner(owner, pod, "team", name))


@pytest.fixture
def operator(trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Return a manager. Trainers at one address respond, those at another accept connections without a response."""
    trainer.answer = GOOD
    monkeypatch.setattr(progress_poller, "PROGRESS_PORT", trainer.port)
    with socket.create_server((SILENT, trainer.port), backlog=4096):
        yield Manager(Settings(checkpoint_retention_seconds=0))


def _store_newest_pod_of_job(cache: FineTuneJobCache) -> None:
    store_run(cache, "team", "bot", SILENT)
    _store_pod(cache, "job-team-bot", created="2026-11-23T09:00:00Z")


def _store_pod_without_finetunejob(cache: FineTuneJobCache) -> None:
    _store_pod(cache, "job-team-bot")


def _store_pod_of_foreign_job(cache: FineTuneJobCache) -> None:
    store_run(cache, "team", "bot", SILENT)
    job = set_owner("ftj-team-other", build_job(active=1), "team", "mine")
    cache.jobs.update(build_key(), job)
    _store_pod(cache, job["metadata"]["uid"], created="2026-11-23T09:00:00Z")


def _store_pod_without_job(cache: FineTuneJobCache) -> None:
    store_run(cache, "team", "bot", SILENT)
    _store_pod(cache, "no-owner", created="2026-11-23T09:00:00Z")


def _store_finished_run(cache: FineTuneJobCache) -> None:
    store_run(cache, "team", "bot", HONEST, type="Failed", status="True", reason="DataInvalid")


def _store_run_with_newer_ended_pod(cache: FineTuneJobCache) -> None:
    store_run(cache, "team", "bot", HONEST)
    _store_pod(cache, "job-team-bot", created="2026-11-23T09:00:00Z", state=build_terminated_state(1))


# What is cached in addition to, or instead of, an unresponsive run, and whether a pod that responds is polled.
POLL_CASES: dict[str, tuple[Callable[[FineTuneJobCache], None], bool]] = {
    "its Job's newest pod": (_store_newest_pod_of_job, True),
    "a pod without a FineTuneJob": (_store_pod_without_finetunejob, False),
    "a pod of a Job with another owner": (_store_pod_of_foreign_job, False),
    "a pod of no Job": (_store_pod_without_job, False),
    "a pod of a run that has ended": (_store_finished_run, False),
    "a pod before the last": (_store_run_with_newer_ended_pod, False),
}


@pytest.mark.parametrize(("store_objects", "is_polled"), POLL_CASES.values(), ids=POLL_CASES)
async def test_poll_only_newest_pod_of_own_job_is_polled(
    operator: Manager,
    monkeypatch: pytest.MonkeyPatch,
    store_objects: Callable[[FineTuneJobCache], None],
    is_polled: bool,
) -> None:
    monkeypatch.setattr(progress_poller, "REQUEST_TIMEOUT", 0.2)
    store_objects(get_cache(operator))
    await operator.workers.poll()
    assert bool(get_cache(operator).reported_progress) == is_polled


# Number of namespaces without a responding pod, and number of pods in each.
FLOODS = {"one namespace": (1, 1200), "more namespaces than there are connections for": (10, 64)}


@pytest.mark.parametrize(("namespaces", "jobs_per_namespace"), FLOODS.values(), ids=FLOODS)
async def test_poll_silent_namespaces_leave_time_for_others(
    operator: Manager, trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch, namespaces: int, jobs_per_namespace: int
) -> None:
    async def respond_slowly(_: web.Request) -> web.Response:
        await asyncio.sleep(0.25)
        return web.json_response(GOOD)

    trainer.handler = respond_slowly
    limits = {"REQUEST_TIMEOUT": 1.5, "POLL_TIMEOUT": 5.0, "MAX_CONNECTIONS": 64, "MAX_NAMESPACE_CONNECTIONS": 8}
    for name, value in limits.items():
        monkeypatch.setattr(progress_poller, name, value)
    for number in range(namespaces * jobs_per_namespace):
        store_run(get_cache(operator), f"evil-{number % namespaces}", f"bot-{number}", SILENT)
    for number in range(HONEST_RUNS):
        store_run(get_cache(operator), "team", f"bot-{number}", HONEST)
    started = time.monotonic()
    await operator.workers.poll()
    assert time.monotonic() - started < progress_poller.POLL_TIMEOUT + 2
    assert set(get_cache(operator).reported_progress) == {build_key(f"bot-{number}") for number in range(HONEST_RUNS)}


async def test_poll_answering_trainer_is_read_before_round_ends(operator: Manager) -> None:
    for number in range(300):
        store_run(get_cache(operator), "evil", f"bot-{number}", SILENT)
    store_run(get_cache(operator), "team", "bot", HONEST)
    started, round_ = time.monotonic(), asyncio.create_task(operator.workers.poll())
    while not get_cache(operator).reported_progress:
        assert time.monotonic() - started < progress_poller.REQUEST_TIMEOUT, "it had to wait for the others"
        await asyncio.sleep(0.02)
    round_.cancel()


async def test_poll_silent_namespace_rotates_polled_pods(operator: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_poller, "REQUEST_TIMEOUT", 0.2)
    monkeypatch.setattr(progress_poller, "POLL_TIMEOUT", 0.3)
    for number in range(200):
        store_run(get_cache(operator), "team", f"bot-{number:03}", SILENT)
    store_run(get_cache(operator), "team", "last", HONEST)
    for _ in range(40):
        await operator.workers.poll()
        if get_cache(operator).reported_progress:
            break
    assert list(get_cache(operator).reported_progress) == [build_key("last")]
