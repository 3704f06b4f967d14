"""New work for an operator: how fast it is done, by which calls, and what it costs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from tests.bench.api import Api, Call, counts, many
from tests.bench.operators import TRAINER, Running, Subject, mount_certificates

WRITES = ("create", "patch", "update", "delete")


class Burst(NamedTuple):
    """What came of new work."""

    rate: float
    """Children created a second, from the first request on."""
    latencies: list[float]
    """Seconds from the creation of each to that of its child."""
    cpu: float
    """CPU milliseconds of the operator for each."""
    calls: Counter[str]

    def per_job(self, *kinds: str) -> float:
        """Calls of these kinds, or of all but Events that are told."""
        wanted = kinds or [kind for kind in self.calls if kind != "create events" and "watch" not in kind]
        return sum(self.calls[kind] for kind in wanted) / len(self.latencies)


def created(calls: Iterable[Call], resource: str, verbs: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in calls:
        if each.resource == resource and each.verb in verbs:
            found.setdefault(each.name, each.at)
    return found


async def burst(api: Api, subject: Subject, operator: Running, prefix: str, count: int) -> Burst:
    """Create so many at once and wait until the operator is done with all."""
    names = [f"{prefix}-{number}" for number in range(count)]
    api.news()
    used = operator.cpu()
    await many(api.create(subject.jobs, subject.body(name)) for name in names)
    calls = await settle(api, subject, names)
    asked = created(calls, subject.jobs.rpartition("/")[2], ["create"])
    made = created(calls, subject.child, ["create", "patch"])
    took = max(made[name] for name in names) - min(asked[name] for name in names)
    latencies = [max(0.0, made[name] - asked[name]) for name in names]
    return Burst(count / took, latencies, 1000 * (operator.cpu() - used) / count, counts(calls))


async def settle(api: Api, subject: Subject, names: Sequence[str]) -> list[Call]:
    """Wait until the operator has written what it writes for new ones, and writes no more; the calls meanwhile."""
    calls: list[Call] = []
    missing, quiet = {(name, kind) for name in names for kind in subject.writes}, 0
    while missing or quiet < 2:
        await asyncio.sleep(0.5)
        new = [each for each in api.news() if each.user == "operator" or each.verb == "create"]
        calls += new
        written = [each for each in new if each.user == "operator" and each.verb in WRITES]
        missing -= {(each.name, each.resource) for each in written}
        quiet = 0 if written else quiet + 1
    return calls


async def clear(api: Api, subject: Subject) -> None:
    """Delete all that was made: it waits for pods in vain, and who starts next would look after it."""
    for path in (subject.jobs, subject.children):
        await api.call("DELETE", path, {"propagationPolicy": "Background"})
        await api.until(partial(_is_empty, api, path))


async def _is_empty(api: Api, path: str) -> bool:
    return not (await api.call("GET", path))["items"]


async def warm_up(api: Api, subject: Subject, number: int) -> None:
    """Wait until it works."""
    if subject is TRAINER:
        await mount_certificates(api)
    name = f"warm-{number}-{time.monotonic_ns()}"
    await api.create(subject.jobs, subject.body(name))
    await settle(api, subject, [name])
