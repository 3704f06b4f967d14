"""A secret that the operator meets appears in none of its outputs: log, Events, status, Job, metrics."""

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
from tests.support.operator.fault_proxy import build_error_response, pass_through
from tests.support.operator.replicas import Replica, run_replica
from tests.support.operator.run_phases import RUNNING, build_outcome_state

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

CANARY = f"canary-{secrets.token_hex(12)}"
METADATA_WITH_CANARY = {
    "annotations": {"note": CANARY, "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"key": CANARY})},
    "labels": {"note": CANARY},
}
STORAGE = {"storage": {"endpoint": "https://store.example", "credentialsSecretRef": {"name": "keys"}}}


class LeakyApiServer:
    """An API server that refuses requests, closes connections, and returns secrets in error messages."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self._answers = self._alternate(
            *map(build_error_response, (500, 503, 409, 401, 403)), web.Response(text="no json")
        )

    def _alternate(self, *answers: web.StreamResponse) -> Iterator[web.StreamResponse | None]:
        """Yield the responses, with a write that is let through after each."""
        for answer in answers:
            yield answer
            yield None

    async def intercept(self, request: web.Request) -> web.StreamResponse | None:
        self.tokens.add(request.headers.get("Authorization", ""))
        if request.method == "GET" or "/leases" in request.path:
            return None
        return next(self._answers, None)


async def _create_credentials_secret(world: NamespaceHarness) -> None:
    data = {"AWS_ACCESS_KEY_ID": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    await world.call("POST", world.path("secrets"), {"metadata": {"name": "keys"}, "data": encoded})


async def _play_completed_run(world: NamespaceHarness) -> None:
    """Play a run that is refused repeatedly, interrupted, suspended, and completed."""
    await world.create_finetunejob("good", STORAGE, **METADATA_WITH_CANARY)
    await world.create_pod("good")
    await world.report_container_state(RUNNING, name="good-1")
    await world.wait_for_reason("PodRunning", "good")
    terminated = build_outcome_state(1, "Completed")
    terminated["terminated"]["message"] = f"Traceback: AWS_SECRET_ACCESS_KEY={CANARY}"  # no outcome
    await world.report_container_state(terminated, "Failed", "good-1")
    await world.wait_for_reason("Retrying", "good")
    await world.patch_spec({"suspend": True}, "good")
    await world.wait_for_reason("Suspending", "good")
    await world.finish_job_deletion("good")
    await world.wait_for_reason("Suspended", "good")
    await world.patch_spec({"suspend": False}, "good")
    await world.create_pod("good", 2)
    await world.report_container_state(build_outcome_state(0, "Completed"), "Succeeded", "good-2")
    await world.report_job_end("Complete", name="good")
    await world.wait_for_reason("Completed", "good")


async def _play_failed_runs(world: NamespaceHarness) -> None:
    """Play a run with an invalid spec, and one that fails without a termination message."""
    uri = f"s3://bucket/{CANARY}/" + "{namespace}" * 88  # too long once it is filled in
    await world.create_finetunejob("invalid", {**STORAGE, "output": {"uri": uri}})
    await world.wait_for_reason("InvalidSpec", "invalid")
    await world.create_finetunejob("fails", STORAGE, **METADATA_WITH_CANARY)
    await world.create_pod("fails")
    terminated = build_outcome_state(1, "Completed")
    terminated["terminated"]["message"] = CANARY
    await world.report_container_state(terminated, "Failed", "fails-1")
    await world.report_job_end("Failed", "BackoffLimitExceeded", "fails")
    await world.wait_for_reason("BackoffLimitExceeded", "fails")


async def _collect_outputs(world: NamespaceHarness, replica: Replica) -> dict[str, Any]:
    """Return all outputs of the operator."""
    jobs = await world.list_objects("jobs")
    return {
        "log": replica.log.read_text(),
        "argv": Path(f"/proc/{replica.process.pid}/cmdline").read_text(),
        "events": await world.list_objects("events"),
        "statuses": [job["status"] for job in await world.list_objects("finetunejobs")],
        "jobs": jobs,
        "metrics": await replica.fetch("/metrics", replica.metrics_port),
        "health": await replica.fetch("/healthz"),
    }


@pytest.mark.parametrize("style", ["text", "json"])
async def test_operator_secret_in_cluster_never_appears_in_outputs(
    world: NamespaceHarness, tmp_path: Path, style: str
) -> None:
    await _create_credentials_secret(world)
    replica, trouble = Replica(world, tmp_path, {"log_level": "debug", "log_format": style}), LeakyApiServer()
    replica.token = CANARY
    replica.proxy.interceptor = trouble.intercept
    with run_replica(replica):
        await _play_completed_run(world)
        await _play_failed_runs(world)
        replica.proxy.interceptor = _refuse_connection
        await world.wait_until(lambda: _log_contains(replica, "failed to acquire or renew the Lease"))
        replica.proxy.interceptor = pass_through
        outputs = await _collect_outputs(world, replica)
        replica.send_signal(signal.SIGTERM)
        await asyncio.to_thread(replica.process.wait, 10)
    assert f"Bearer {CANARY}" in trouble.tokens
    assert [place for place, text in outputs.items() if not text] == []
    assert [place for place, text in outputs.items() if CANARY in json.dumps(text)] == []
    assert CANARY not in replica.log.read_text()


async def _refuse_connection(_: web.Request) -> None:
    raise ConnectionResetError


async def _log_contains(replica: Replica, words: str) -> bool:
    return words in replica.log.read_text()
