"""An operator that starts among jobs that have ended long ago, and a few new ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench import lives
from tests.bench.api import Api, counts, many
from tests.bench.bursts import WRITES, burst, created, settle
from tests.bench.operators import OURS, TRAINER, Running, Subject, mount_certificates, run

NEW = 20
"""Jobs that wait when an operator starts again."""
AFTER = 200
"""Jobs that are created after that, to see what each costs by then."""
IDLE = 30.0
"""Seconds over which idleness is measured."""


class Restart(NamedTuple):
    """What a start among finished jobs came to."""

    first: float
    """Seconds from the start of the process to the first new child."""
    all: float
    rss: int
    """KiB."""
    idle_cpu: float
    """Percent of a core."""
    idle_calls: float
    """A minute."""
    touched: int
    """Writes to finished jobs and what belongs to them."""
    cpu: float
    """CPU milliseconds for a new job afterwards."""


async def restart(api: Api, url: str, folder: Path, subject: Subject, finished: int) -> Restart:
    """Start the operator among so many finished jobs and a few new ones."""
    names = [f"new-{finished}-{number}" for number in range(NEW)]
    await many(api.create(subject.jobs, subject.body(name)) for name in names)
    api.news()
    begun = time.time()
    with run(subject, url, folder) as operator:
        if subject is TRAINER:
            await mount_certificates(api)
        calls = await settle(api, subject, names)
        made = [at - begun for name, at in created(calls, subject.child, ["create", "patch"]).items() if name in names]
        await complete(api, subject, names)
        await rest(operator)
        calls += api.news()
        used, rss = operator.cpu(), operator.rss()
        await asyncio.sleep(IDLE)
        idle, quiet = 100 * (operator.cpu() - used) / IDLE, api.news()
        new = await burst(api, subject, operator, f"after-{finished}", AFTER)
    await complete(api, subject, [f"after-{finished}-{number}" for number in range(AFTER)])
    theirs = [each for each in calls + quiet if each.user == "operator" and each.verb in WRITES]
    touched = sum(each.name.startswith("old-") for each in theirs)
    return Restart(min(made), max(made), rss, idle, 60 / IDLE * counts(quiet).total(), touched, new.cpu)


async def rest(operator: Running) -> None:
    """Wait until it does almost nothing, three minutes at most."""
    for _ in range(18):
        used = operator.cpu()
        await asyncio.sleep(10)
        if operator.cpu() - used < 0.1:
            return


async def complete(api: Api, subject: Subject, names: Sequence[str]) -> None:
    """Nothing is left to wait for; Kubeflow Trainer asks nothing of what waits."""
    if subject is OURS:
        await many((lives.live(api, name) for name in names), 8)


async def restarts(api: Api, url: str, folder: Path, subject: Subject, sizes: Sequence[int]) -> None:
    """Starts among more and more finished jobs."""
    print(f"\n{subject.name}: a start among finished jobs and {NEW} new ones\n")
    print(
        "| finished | first new, s | all new, s | RSS, MiB | KiB/finished | idle CPU, % | idle calls/min "
        "| writes to finished | CPU ms/new job |"
    )
    print("|" + " --- |" * 9)
    base = 0
    for stage, (stored, size) in enumerate(zip([0, 0, *sizes], [0, *sizes], strict=False)):
        await many(lives.finished(api, subject, stored, size))
        found = await restart(api, url, folder, subject, size)
        base = base or found.rss
        added = size + stage * (NEW + AFTER)  # with what earlier stages left
        each = f"{(found.rss - base) / added:.1f}" if stage else ""
        print(
            f"| {size} | {found.first:.2f} | {found.all:.2f} | {found.rss / 1024:.0f} | {each} | {found.idle_cpu:.2f} "
            f"| {found.idle_calls:.0f} | {found.touched} | {found.cpu:.2f} |",
            flush=True,
        )
