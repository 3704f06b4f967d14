"""A secret that lies about in every place where secrets lie comes out in none: log, Events, status, Job, metrics."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from tests.operator.phases import RUNNING, ended
from tests.operator.proxies import failure, healthy
from tests.operator.replicas import Replica, running

if TYPE_CHECKING:
    from tests.operator.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

CANARY = f"canary-{secrets.token_hex(12)}"
KEPT = {
    "annotations": {"note": CANARY, "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"key": CANARY})},
    "labels": {"note": CANARY},
}
STORAGE = {"storage": {"endpoint": "https://store.example", "credentialsSecretRef": {"name": "keys"}}}


class Trouble:
    """An API server that refuses, breaks off, and answers with what it should keep to itself."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self._answers = self._between(*map(failure, (500, 503, 409, 401, 403)), web.Response(text="no json"))

    def _between(self, *answers: web.StreamResponse) -> Iterator[web.StreamResponse | None]:
        """One write after the other is let through."""
        for answer in answers:
            yield answer
            yield None

    async def trouble(self, request: web.Request) -> web.StreamResponse | None:
        self.tokens.add(request.headers.get("Authorization", ""))
        if request.method == "GET" or "/leases" in request.path:
            return None
        return next(self._answers, None)


async def _keys(world: World) -> None:
    data = {"AWS_ACCESS_KEY_ID": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    await world.call("POST", world.path("secrets"), {"metadata": {"name": "keys"}, "data": encoded})


async def _good(world: World) -> None:
    """Refused again and again at first, interrupted, suspended, and complete in the end."""
    await world.apply("good", STORAGE, **KEPT)
    await world.pod("good")
    await world.kubelet(RUNNING, name="good-1")
    await world.reason("PodRunning", "good")
    crashed = ended(1, "Completed")
    crashed["terminated"]["message"] = f"Traceback: AWS_SECRET_ACCESS_KEY={CANARY}"  # no outcome
    await world.kubelet(crashed, "Failed", "good-1")
    await world.reason("Retrying", "good")
    await world.change({"suspend": True}, "good")
    await world.reason("Suspending", "good")
    await world.collect("good")
    await world.reason("Suspended", "good")
    await world.change({"suspend": False}, "good")
    await world.pod("good", 2)
    await world.kubelet(ended(0, "Completed"), "Succeeded", "good-2")
    await world.job_ends("Complete", name="good")
    await world.reason("Completed", "good")


async def _bad(world: World) -> None:
    """Found wrong by the operator, whose message names the field and not its value; and failed without a word."""
    uri = f"s3://bucket/{CANARY}/" + "{namespace}" * 88  # too long once it is filled in
    await world.apply("invalid", {**STORAGE, "output": {"uri": uri}})
    await world.reason("InvalidSpec", "invalid")
    await world.apply("fails", STORAGE, **KEPT)
    await world.pod("fails")
    crashed = ended(1, "Completed")
    crashed["terminated"]["message"] = CANARY
    await world.kubelet(crashed, "Failed", "fails-1")
    await world.job_ends("Failed", "BackoffLimitExceeded", "fails")
    await world.reason("BackoffLimitExceeded", "fails")


async def _all_that_is_told(world: World, replica: Replica) -> dict[str, Any]:
    """By the operator, wherever it may be read."""
    jobs = await world.all("jobs")
    return {
        "log": replica.log.read_text(),
        "argv": Path(f"/proc/{replica.process.pid}/cmdline").read_text(),
        "events": await world.all("events"),
        "statuses": [each["status"] for each in await world.all("finetunejobs")],
        "jobs": jobs,
        "metrics": await replica.ask("/metrics", replica.metrics_port),
        "health": await replica.ask("/healthz"),
    }


@pytest.mark.parametrize("style", ["text", "json"])
async def test_no_secret_is_told_anywhere(world: World, tmp_path: Path, style: str) -> None:
    await _keys(world)
    replica, trouble = Replica(world, tmp_path, {"log_level": "debug", "log_format": style}), Trouble()
    replica.token = CANARY
    replica.proxy.trouble = trouble.trouble
    with running(replica):
        await _good(world)
        await _bad(world)
        replica.proxy.trouble = _away
        await world.until(lambda: _has(replica, "no word about the Lease"))
        replica.proxy.trouble = healthy
        told = await _all_that_is_told(world, replica)
        replica.send(signal.SIGTERM)
        await asyncio.to_thread(replica.process.wait, 10)
    assert f"Bearer {CANARY}" in trouble.tokens
    assert [place for place, text in told.items() if not text] == []
    assert [place for place, text in told.items() if CANARY in json.dumps(text)] == []
    assert CANARY not in replica.log.read_text()


async def _away(_: web.Request) -> None:
    raise ConnectionResetError


async def _has(replica: Replica, words: str) -> bool:
    return words in replica.log.read_text()
