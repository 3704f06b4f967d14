"""One namespace creates thousands at once: how long another's few wait meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.bench.api import Api, Call, many
from tests.bench.bursts import clear, created, warm_up
from tests.bench.operators import NAMESPACE, OURS, run
from tests.support.operator.builders import build_manifest

OTHER = "other"
PAUSE = 0.5
"""Seconds between two of the other namespace."""
_FEW = OURS._replace(
    jobs=OURS.jobs.replace(NAMESPACE, OTHER),
    children=OURS.children.replace(NAMESPACE, OTHER),
    body=lambda name: build_manifest(name, OTHER),
)


async def flood(api: Api, url: str, folder: Path, count: int) -> None:
    """Both tables' rows: alone, and beside so many."""
    await api.create("/api/v1/namespaces", {"metadata": {"name": OTHER}})
    print(f"\none job each {PAUSE} s, alone and while {count} of another namespace wait\n")
    print("| beside | jobs | p50, s | p99, s |\n| --- | --- | --- | --- |")
    with run(OURS, url, folder) as operator:
        await warm_up(api, OURS, -2)
        _tell("none", await _served(api, "alone", asyncio.create_task(asyncio.sleep(60))))
        names = [f"flood-{number}" for number in range(count)]
        stored = asyncio.create_task(many((api.create(OURS.jobs, OURS.body(name)) for name in names), 16))
        _tell(str(count), await _served(api, "beside", asyncio.create_task(_all_made(api, stored, count))))
        print(f"\nRSS {operator.rss() / 1024:.0f} MiB", flush=True)
    for subject in (OURS, _FEW):
        await clear(api, subject)


async def _all_made(api: Api, stored: asyncio.Task[None], count: int) -> None:
    await stored

    async def made() -> bool:
        return len((await api.call("GET", f"{OURS.children}?resourceVersion=0"))["items"]) >= count

    while not await made():
        await asyncio.sleep(5)


async def _served(api: Api, prefix: str, until: asyncio.Task[None]) -> list[float]:
    """Seconds from the creation of each to that of its Job, created one after the other until something is done."""
    calls, names = list[Call](), list[str]()
    api.news()
    while not until.done():
        names.append(f"{prefix}-{len(names)}")
        await api.create(_FEW.jobs, _FEW.body(names[-1]))
        await asyncio.sleep(PAUSE)
        calls += api.news()
    await asyncio.sleep(5)
    calls += api.news()
    asked, made = created(calls, "finetunejobs", ["create"]), created(calls, "jobs", ["create"])
    return sorted(made[name] - asked[name] for name in names)


def _tell(beside: str, waits: list[float]) -> None:
    print(
        f"| {beside} | {len(waits)} | {waits[len(waits) // 2]:.2f} | {waits[len(waits) * 99 // 100]:.2f} |", flush=True
    )
