"""Fairness between namespaces: how long jobs of one namespace wait while another one creates thousands at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.bench.api import Api, Call, run_all
from tests.bench.bursts import delete_all, find_write_times, warm_up
from tests.bench.operators import NAMESPACE, OURS, run_operator
from tests.support.operator.builders import build_manifest

OTHER_NAMESPACE = "other"
PAUSE_SECONDS = 0.5
"""Seconds between two jobs of the namespace that is measured."""
_OTHER_SUBJECT = OURS._replace(
    jobs=OURS.jobs.replace(NAMESPACE, OTHER_NAMESPACE),
    children=OURS.children.replace(NAMESPACE, OTHER_NAMESPACE),
    body=lambda name: build_manifest(name, OTHER_NAMESPACE),
)


async def measure_flood(api: Api, url: str, folder: Path, count: int) -> None:
    """Print the waiting times of jobs alone, and while another namespace creates `count` jobs at once."""
    await api.create("/api/v1/namespaces", {"metadata": {"name": OTHER_NAMESPACE}})
    print(f"\nOne job every {PAUSE_SECONDS} s, alone and while another namespace creates {count} at once\n")
    print("| Other jobs | Jobs | p50, s | p99, s |\n| --- | --- | --- | --- |")
    with run_operator(OURS, url, folder) as operator:
        await warm_up(api, OURS, -2)
        _print_row("none", await _measure_waits(api, "alone", asyncio.create_task(asyncio.sleep(60))))
        names = [f"flood-{number}" for number in range(count)]
        creation = asyncio.create_task(run_all((api.create(OURS.jobs, OURS.body(name)) for name in names), 16))
        _print_row(
            str(count),
            await _measure_waits(api, "concurrent", asyncio.create_task(_wait_until_created(api, creation, count))),
        )
        print(f"\nRSS {operator.rss_kib() / 1024:.0f} MiB", flush=True)
    for subject in (OURS, _OTHER_SUBJECT):
        await delete_all(api, subject)


async def _wait_until_created(api: Api, creation: asyncio.Task[None], count: int) -> None:
    await creation

    async def has_all_jobs() -> bool:
        return len((await api.call("GET", f"{OURS.children}?resourceVersion=0"))["items"]) >= count

    while not await has_all_jobs():
        await asyncio.sleep(5)


async def _measure_waits(api: Api, prefix: str, background: asyncio.Task[None]) -> list[float]:
    """Create jobs one after the other until `background` is done. Return the sorted seconds until each had a Job."""
    calls, names = list[Call](), list[str]()
    api.read_new_calls()
    while not background.done():
        names.append(f"{prefix}-{len(names)}")
        await api.create(_OTHER_SUBJECT.jobs, _OTHER_SUBJECT.body(names[-1]))
        await asyncio.sleep(PAUSE_SECONDS)
        calls += api.read_new_calls()
    await asyncio.sleep(5)
    calls += api.read_new_calls()
    requested_at, created_at = (
        find_write_times(calls, "finetunejobs", ["create"]),
        find_write_times(calls, "jobs", ["create"]),
    )
    return sorted(created_at[name] - requested_at[name] for name in names)


def _print_row(label: str, waits: list[float]) -> None:
    print(
        f"| {label} | {len(waits)} | {waits[len(waits) // 2]:.2f} | {waits[len(waits) * 99 // 100]:.2f} |", flush=True
    )
