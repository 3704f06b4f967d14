"""Bursts of new jobs: how fast an operator creates their children, with which calls, and at what CPU cost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from tests.bench.api import Api, Call, count_operator_calls, run_all
from tests.bench.operators import TRAINER, OperatorProcess, Subject, mount_certificates

WRITES = ("create", "patch", "update", "delete")


class BurstResult(NamedTuple):
    """Measurements of one burst."""

    rate: float
    """Created children per second, counted from the first request."""
    latencies: list[float]
    """Seconds from the creation of each job to the creation of its child."""
    cpu: float
    """CPU milliseconds of the operator per job."""
    calls: Counter[str]

    def per_job(self, *kinds: str) -> float:
        """Return calls per job of these kinds; without kinds, all calls except creating Events and watching."""
        selected_kinds = kinds or [kind for kind in self.calls if kind != "create events" and "watch" not in kind]
        return sum(self.calls[kind] for kind in selected_kinds) / len(self.latencies)


def find_write_times(calls: Iterable[Call], resource: str, verbs: Sequence[str]) -> dict[str, float]:
    """Return the time of the first write to each object of a resource, by name."""
    times: dict[str, float] = {}
    for call in calls:
        if call.resource == resource and call.verb in verbs:
            times.setdefault(call.name, call.answered_at)
    return times


async def run_burst(api: Api, subject: Subject, operator: OperatorProcess, prefix: str, count: int) -> BurstResult:
    """Create `count` jobs at once and wait until the operator has processed all of them."""
    names = [f"{prefix}-{number}" for number in range(count)]
    api.read_new_calls()
    cpu_before = operator.cpu_seconds()
    await run_all(api.create(subject.jobs, subject.body(name)) for name in names)
    calls = await wait_until_settled(api, subject, names)
    requested_at = find_write_times(calls, subject.jobs.rpartition("/")[2], ["create"])
    created_at = find_write_times(calls, subject.child, ["create", "patch"])
    duration = max(created_at[name] for name in names) - min(requested_at[name] for name in names)
    latencies = [max(0.0, created_at[name] - requested_at[name]) for name in names]
    return BurstResult(
        count / duration, latencies, 1000 * (operator.cpu_seconds() - cpu_before) / count, count_operator_calls(calls)
    )


async def wait_until_settled(api: Api, subject: Subject, names: Sequence[str]) -> list[Call]:
    """Wait until the operator has written everything for the new jobs and is quiet. Return the calls meanwhile."""
    calls: list[Call] = []
    missing, quiet = {(name, kind) for name in names for kind in subject.writes}, 0
    while missing or quiet < 2:
        await asyncio.sleep(0.5)
        new = [call for call in api.read_new_calls() if call.user == "operator" or call.verb == "create"]
        calls += new
        writes = [call for call in new if call.user == "operator" and call.verb in WRITES]
        missing -= {(write.name, write.resource) for write in writes}
        quiet = 0 if writes else quiet + 1
    return calls


async def delete_all(api: Api, subject: Subject) -> None:
    """Delete all jobs and children: they never get pods, and the next operator would process them too."""
    for path in (subject.jobs, subject.children):
        await api.call("DELETE", path, {"propagationPolicy": "Background"})
        await api.wait_until(partial(_is_empty, api, path))


async def _is_empty(api: Api, path: str) -> bool:
    return not (await api.call("GET", path))["items"]


async def warm_up(api: Api, subject: Subject, number: int) -> None:
    """Wait until the operator has processed a first job."""
    if subject is TRAINER:
        await mount_certificates(api)
    name = f"warm-{number}-{time.monotonic_ns()}"
    await api.create(subject.jobs, subject.body(name))
    await wait_until_settled(api, subject, [name])
