"""What the operator costs beside Kubeflow Trainer's, on a real API server: `make bench-operator`, by hand.

Both run with their shipped settings. Kubeflow Trainer's webhook is bypassed, and its way ends at the JobSet: JobSet's
own controller, which makes the Job, does not run, so its numbers are better than in a cluster. Rounds are interleaved.
What counts on a machine with other work are ratios within a run, calls, and CPU time, not the rates alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import lives
from tests.bench.api import Api, connect, counts, many, serve
from tests.bench.bursts import Burst, burst, clear, settle, warm_up
from tests.bench.floods import flood
from tests.bench.operators import OURS, TRAINER, Subject, interpreter, prepare, run
from tests.bench.restarts import restarts


async def beside(api: Api, url: str, folder: Path, rounds: int, count: int) -> None:
    """New work, each operator in turn."""
    print(f"\n{count} jobs at once, {rounds} rounds each; medians, and ranges of the rates\n")
    print("| operator | jobs/s | range | p50, s | p99, s | calls/job | Events/job | CPU ms/job | RSS, MiB |")
    print("|" + " --- |" * 9)
    found: dict[str, list[tuple[Burst, int]]] = {OURS.name: [], TRAINER.name: []}
    for number in range(rounds):
        for subject in (OURS, TRAINER):
            with run(subject, url, folder) as operator:
                await warm_up(api, subject, number)
                new = await burst(api, subject, operator, f"round-{number}", count)
                found[subject.name].append((new, operator.rss()))
            await clear(api, subject)
    for name, all_ in found.items():
        rates = [each.rate for each, _ in all_]
        latencies = sorted(each for new, _ in all_ for each in new.latencies)
        columns = [
            f"{statistics.median(rates):.1f}", f"{min(rates):.0f}-{max(rates):.0f}",
            f"{statistics.median(latencies):.2f}", f"{latencies[len(latencies) * 99 // 100]:.2f}",
            f"{statistics.median(each.per_job() for each, _ in all_):.2f}",
            f"{statistics.median(each.per_job('create events') for each, _ in all_):.2f}",
            f"{statistics.median(each.cpu for each, _ in all_):.2f}",
            f"{statistics.median(rss for _, rss in all_) / 1024:.0f}",
        ]  # fmt: skip
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


async def whole_lives(api: Api, url: str, folder: Path, count: int) -> None:
    """From creation to completion, with each Job and pod watched on the way."""
    changes: list[str] = []
    watch = asyncio.create_task(api.count_changes(OURS.jobs, changes))
    with run(OURS, url, folder) as operator:
        await warm_up(api, OURS, -1)
        changes.clear()
        new = await burst(api, OURS, operator, "life", count)
        used = operator.cpu()
        await many((lives.live(api, f"life-{number}") for number in range(count)), 64)
        await api.until(lambda: lives.all_complete(api, "life-"))
        calls = new.calls + counts(await settle(api, OURS, []))
        cpu = new.cpu + 1000 * (operator.cpu() - used) / count
    watch.cancel()
    print(f"\n{count} whole lives: created, running, complete\n")
    print("| status writes/job | of those, without a change | Job writes/job | Events/job | reads/job | CPU ms/job |")
    print("|" + " --- |" * 6)
    writes = calls["patch finetunejobs/status"]
    idle = writes - sum(each.startswith("life-") for each in changes)
    jobs, told = calls["create jobs"] + calls["patch jobs"], calls["create events"]
    reads = sum(calls[kind] for kind in calls if kind.startswith(("get", "list")))
    columns = [f"{each / count:.2f}" for each in (jobs, told, reads)]
    print(f"| {writes / count:.2f} | {idle} | {' | '.join(columns)} | {cpu:.2f} |", flush=True)


async def measure(url: str, log: Path, folder: Path, asked: argparse.Namespace) -> None:
    """All tables."""
    async with connect(url, log) as api:
        await prepare(api)
        if asked.rounds:
            await beside(api, url, folder, asked.rounds, asked.jobs)
            await whole_lives(api, url, folder, asked.jobs)
        if asked.flood:
            await flood(api, url, folder, asked.flood)


async def measure_restarts(url: str, log: Path, folder: Path, case: tuple[Subject, Sequence[int]]) -> None:
    """One operator's restarts, on an API server of its own."""
    async with connect(url, log) as api:
        await prepare(api)
        await restarts(api, url, folder, *case)


def main() -> None:
    """Everything; half an hour, most of it to store finished jobs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, help="new jobs in a round")
    parser.add_argument("--rounds", type=int, default=3, help="0 skips this and the next")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 5000, 10000], help="finished jobs at a restart")
    parser.add_argument("--peer-sizes", type=int, nargs="*", default=[1000, 5000], help="the same, of the peer")
    parser.add_argument("--flood", type=int, default=5000, help="jobs of one namespace, while another has few")
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        print(f"{os.cpu_count()} cores; load average at the start: {os.getloadavg()[0]:.1f}; ours by {interpreter()}")
        with serve(folder / "beside") as (url, log):
            asyncio.run(measure(url, log, folder, asked))
        for subject, sizes in ((OURS, asked.sizes), (TRAINER, asked.peer_sizes)):
            if sizes:
                with serve(folder / subject.child) as (url, log):
                    asyncio.run(measure_restarts(url, log, folder, (subject, sizes)))


if __name__ == "__main__":
    main()
