"""Restarts of an operator in a cluster with many finished jobs and a few new ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench import lifecycles
from tests.bench.api import Api, count_operator_calls, run_all
from tests.bench.bursts import WRITES, find_write_times, run_burst, wait_until_settled
from tests.bench.operators import OURS, TRAINER, OperatorProcess, Subject, mount_certificates, run_operator

NEW_JOBS = 20
"""Number of new jobs that wait when the operator starts."""
LATER_JOBS = 200
"""Number of jobs that are created afterwards, to measure the CPU time per job."""
IDLE_SECONDS = 30.0
"""Seconds over which CPU time and calls of the idle operator are measured."""


class RestartResult(NamedTuple):
    """Measurements of one restart."""

    first_seconds: float
    """Seconds from the start of the process to the first new child."""
    all_seconds: float
    """Seconds from the start of the process to the last new child."""
    rss: int
    """Resident memory in KiB."""
    idle_cpu: float
    """CPU of the idle operator, in percent of a core."""
    idle_calls: float
    """Calls of the idle operator per minute."""
    touched: int
    """Writes to finished jobs and their objects."""
    cpu: float
    """CPU milliseconds per new job afterwards."""


async def measure_restart(api: Api, url: str, folder: Path, subject: Subject, finished: int) -> RestartResult:
    """Start the operator with `finished` finished jobs and 20 new ones, and measure it."""
    names = [f"new-{finished}-{number}" for number in range(NEW_JOBS)]
    await run_all(api.create(subject.jobs, subject.body(name)) for name in names)
    api.read_new_calls()
    started_at = time.time()
    with run_operator(subject, url, folder) as operator:
        if subject is TRAINER:
            await mount_certificates(api)
        calls = await wait_until_settled(api, subject, names)
        creation_delays = [
            at - started_at
            for name, at in find_write_times(calls, subject.child, ["create", "patch"]).items()
            if name in names
        ]
        await complete_jobs(api, subject, names)
        await wait_until_idle(operator)
        calls += api.read_new_calls()
        cpu_before, rss = operator.cpu_seconds(), operator.rss_kib()
        await asyncio.sleep(IDLE_SECONDS)
        idle, quiet = 100 * (operator.cpu_seconds() - cpu_before) / IDLE_SECONDS, api.read_new_calls()
        new = await run_burst(api, subject, operator, f"after-{finished}", LATER_JOBS)
    await complete_jobs(api, subject, [f"after-{finished}-{number}" for number in range(LATER_JOBS)])
    operator_writes = [call for call in calls + quiet if call.user == "operator" and call.verb in WRITES]
    touched = sum(call.name.startswith("old-") for call in operator_writes)
    return RestartResult(
        min(creation_delays),
        max(creation_delays),
        rss,
        idle,
        60 / IDLE_SECONDS * count_operator_calls(quiet).total(),
        touched,
        new.cpu,
    )


async def wait_until_idle(operator: OperatorProcess) -> None:
    """Wait until the operator uses less than 1 % of a core, at most three minutes."""
    for _ in range(18):
        cpu_before = operator.cpu_seconds()
        await asyncio.sleep(10)
        if operator.cpu_seconds() - cpu_before < 0.1:
            return


async def complete_jobs(api: Api, subject: Subject, names: Sequence[str]) -> None:
    """Complete our jobs, so that none stays active. Kubeflow Trainer does not poll active jobs."""
    if subject is OURS:
        await run_all((lifecycles.complete_lifecycle(api, name) for name in names), 8)


async def run_restart_series(api: Api, url: str, folder: Path, subject: Subject, sizes: Sequence[int]) -> None:
    """Print the table of restarts with increasing numbers of finished jobs."""
    print(f"\n{subject.name}: start with finished jobs and {NEW_JOBS} new ones\n")
    print(
        "| Finished | First new, s | All new, s | RSS, MiB | KiB/finished | Idle CPU, % | Idle calls/min "
        "| Writes to finished | CPU ms/new job |"
    )
    print("|" + " --- |" * 9)
    base = 0
    for stage, (stored, size) in enumerate(zip([0, 0, *sizes], [0, *sizes], strict=False)):
        await run_all(lifecycles.store_finished(api, subject, stored, size))
        result = await measure_restart(api, url, folder, subject, size)
        base = base or result.rss
        added = size + stage * (NEW_JOBS + LATER_JOBS)  # including the jobs of earlier stages
        growth = f"{(result.rss - base) / added:.1f}" if stage else ""
        print(
            f"| {size} | {result.first_seconds:.2f} | {result.all_seconds:.2f} | {result.rss / 1024:.0f} | "
            f"{growth} | {result.idle_cpu:.2f} "
            f"| {result.idle_calls:.0f} | {result.touched} | {result.cpu:.2f} |",
            flush=True,
        )
