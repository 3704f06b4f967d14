"""Whom the operator asks how far they are, and that some who never answer cost only themselves."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from tests.operator.bodies import NOW, ended_state, job_body, pod_body, stored

from finetune_operator.controller import progress_poller
from finetune_operator.kube.cache import InformerCache
from finetune_operator.manager import Manager
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.operator.proxies import Trainer

Body = dict[str, Any]
GOOD = {"stage": "Training", "percentage": 40, "step": 4, "totalSteps": 10, "loss": 1.25, "lastUpdateTime": "t"}
RUNNING = {"running": {"startedAt": NOW}}
HEARD = 16
HONEST, SILENT = "127.0.0.1", "127.0.0.2"


def _owned_by(uid: str, body: Body, namespace: str, name: str, label: str = "bot") -> Body:
    kind = "pod" if "containerStatuses" in body["status"] else "job"
    named = {"namespace": namespace, "name": name, "uid": f"{kind}-{namespace}-{name}"}
    owner = [{"uid": uid, "controller": True}]
    labels = {"finetune.dev/job": label}
    return {**body, "metadata": {**body["metadata"], **named, "ownerReferences": owner, "labels": labels}}


def _run(store: InformerCache, namespace: str, name: str, address: str, **condition: Any) -> None:
    """A FineTuneJob, its Job, and the Job's pod."""
    body = stored(name, namespace=namespace, uid=f"ftj-{namespace}-{name}")
    status = {"conditions": [condition]} if condition else {}
    store.finetunejobs.update((namespace, name), {**body, "status": status})
    job = _owned_by(f"ftj-{namespace}-{name}", job_body(active=1), namespace, name, name)
    store.jobs.update((namespace, name), job)
    running = pod_body(name, RUNNING, "Running", podIP=address)
    pod = _owned_by(job["metadata"]["uid"], running, namespace, name, name)
    store.pods.update((namespace, name), pod)


def _pod(store: InformerCache, owner: str, name: str = "another", created: str = NOW, state: Body = RUNNING) -> None:
    """One more with the label of the run `bot`."""
    pod = pod_body(name, state, "Running", podIP=HONEST, created=created)
    store.pods.update(("team", "bot"), _owned_by(owner, pod, "team", name))


@pytest.fixture
def operator(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Trainers at one address answer, those at another take connections and say nothing."""
    trainer.answer = GOOD
    monkeypatch.setattr(progress_poller, "PROGRESS_PORT", trainer.port)
    with socket.create_server((SILENT, trainer.port), backlog=4096):
        yield Manager(Settings())


def _its_jobs_newest(store: InformerCache) -> None:
    _run(store, "team", "bot", SILENT)
    _pod(store, "job-team-bot", created="2026-11-23T09:00:00Z")


def _no_finetunejob(store: InformerCache) -> None:
    _pod(store, "job-team-bot")


def _somebody_elses_job(store: InformerCache) -> None:
    _run(store, "team", "bot", SILENT)
    job = _owned_by("ftj-team-other", job_body(active=1), "team", "mine")
    store.jobs.update(("team", "bot"), job)
    _pod(store, job["metadata"]["uid"], created="2026-11-23T09:00:00Z")


def _no_job(store: InformerCache) -> None:
    _run(store, "team", "bot", SILENT)
    _pod(store, "nobody", created="2026-11-23T09:00:00Z")


def _an_end(store: InformerCache) -> None:
    _run(store, "team", "bot", HONEST, type="Failed", status="True", reason="DataInvalid")


def _an_earlier_pod(store: InformerCache) -> None:
    _run(store, "team", "bot", HONEST)
    _pod(store, "job-team-bot", created="2026-11-23T09:00:00Z", state=ended_state(1))


# what is there beside, or instead of, a silent run; and whether an answer is heard
ASKED: dict[str, tuple[Callable[[InformerCache], None], bool]] = {
    "its Job's newest pod": (_its_jobs_newest, True),
    "a pod without a FineTuneJob": (_no_finetunejob, False),
    "a pod of a Job that another made": (_somebody_elses_job, False),
    "a pod of no Job": (_no_job, False),
    "a pod of a run that has ended": (_an_end, False),
    "a pod before the last": (_an_earlier_pod, False),
}


@pytest.mark.parametrize(("put", "heard"), ASKED.values(), ids=ASKED)
async def test_only_pods_that_our_own_jobs_made_are_asked(
    operator: Manager, monkeypatch: pytest.MonkeyPatch, put: Callable[[InformerCache], None], heard: bool
) -> None:
    monkeypatch.setattr(progress_poller, "REQUEST_TIMEOUT", 0.5)
    put(operator.cache)
    await operator.workers.poll_progress()
    assert bool(operator.cache.reported_progress) == heard


# namespaces of which no pod answers, and how many each has
FLOODS = {"one namespace": (1, 1200), "more namespaces than there are connections for": (10, 64)}


@pytest.mark.parametrize(("namespaces", "each"), FLOODS.values(), ids=FLOODS)
async def test_the_silence_of_others_costs_nobody_an_answer(
    operator: Manager, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, namespaces: int, each: int
) -> None:
    async def take_half_of_the_time(_: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.json_response(GOOD)

    trainer.handler = take_half_of_the_time
    limits = {"REQUEST_TIMEOUT": 1.0, "POLL_TIMEOUT": 5.0, "MAX_CONNECTIONS": 64, "MAX_NAMESPACE_CONNECTIONS": 8}
    for name, value in limits.items():
        monkeypatch.setattr(progress_poller, name, value)
    for number in range(namespaces * each):
        _run(operator.cache, f"evil-{number % namespaces}", f"bot-{number}", SILENT)
    for number in range(HEARD):
        _run(operator.cache, "team", f"bot-{number}", HONEST)
    began = time.monotonic()
    await operator.workers.poll_progress()
    assert time.monotonic() - began < progress_poller.POLL_TIMEOUT + 2
    assert set(operator.cache.reported_progress) == {("team", f"bot-{number}") for number in range(HEARD)}


async def test_those_that_answer_are_heard_at_once(operator: Manager) -> None:
    for number in range(300):
        _run(operator.cache, "evil", f"bot-{number}", SILENT)
    _run(operator.cache, "team", "bot", HONEST)
    began, round_ = time.monotonic(), asyncio.create_task(operator.workers.poll_progress())
    while not operator.cache.reported_progress:
        assert time.monotonic() - began < progress_poller.REQUEST_TIMEOUT, "it had to wait for the others"
        await asyncio.sleep(0.02)
    round_.cancel()


async def test_of_a_silent_namespace_not_always_the_same_are_left_out(
    operator: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_poller, "REQUEST_TIMEOUT", 0.2)
    monkeypatch.setattr(progress_poller, "POLL_TIMEOUT", 0.3)
    for number in range(200):
        _run(operator.cache, "team", f"bot-{number:03}", SILENT)
    _run(operator.cache, "team", "last", HONEST)
    for _ in range(40):
        await operator.workers.poll_progress()
        if operator.cache.reported_progress:
            break
    assert list(operator.cache.reported_progress) == [("team", "last")]
