"""Benchmark of the operator and of Kubeflow Trainer on a real API server: `make bench-operator`, run by hand.

Both run with their default settings. Kubeflow Trainer's webhook is bypassed, and its work ends with the JobSet: the
controller of JobSet, which creates the Job, does not run, so its numbers are better than in a cluster. Rounds alternate
between the two. On a machine with other work, compare ratios within a run, calls and CPU time rather than rates.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import lifecycles
from tests.bench.api import Api, connect, count_operator_calls, run_all, serve
from tests.bench.bursts import BurstResult, delete_all, run_burst, wait_until_settled, warm_up
from tests.bench.floods import measure_flood
from tests.bench.operators import OURS, TRAINER, Subject, choose_interpreter, prepare_cluster, run_operator
from tests.bench.owners import measure_owners
from tests.bench.restarts import run_restart_series


async def compare_bursts(api: Api, url: str, folder: Path, rounds: int, count: int) -> None:
    """Print the table of bursts of new jobs, in rounds that alternate between the operators."""
    print(f"\n{count} jobs at once, {rounds} rounds each; medians, and ranges of the rates\n")
    print("| Operator | Jobs/s | Range | p50, s | p99, s | Calls/job | Events/job | CPU ms/job | RSS, MiB |")
    print("|" + " --- |" * 9)
    results: dict[str, list[tuple[BurstResult, int]]] = {OURS.name: [], TRAINER.name: []}
    for number in range(rounds):
        for subject in (OURS, TRAINER):
            with run_operator(subject, url, folder) as operator:
                await warm_up(api, subject, number)
                measured = await run_burst(api, subject, operator, f"round-{number}", count)
                results[subject.name].append((measured, operator.rss_kib()))
            await delete_all(api, subject)
    for name, subject_results in results.items():
        rates = [measured.rate for measured, _ in subject_results]
        latencies = sorted(latency for new, _ in subject_results for latency in new.latencies)
        columns = [
            f"{statistics.median(rates):.1f}", f"{min(rates):.0f}-{max(rates):.0f}",
            f"{statistics.median(latencies):.2f}", f"{latencies[len(latencies) * 99 // 100]:.2f}",
            f"{statistics.median(measured.per_job() for measured, _ in subject_results):.2f}",
            f"{statistics.median(measured.per_job('create events') for measured, _ in subject_results):.2f}",
            f"{statistics.median(measured.cpu for measured, _ in subject_results):.2f}",
            f"{statistics.median(rss for _, rss in subject_results) / 1024:.0f}",
        ]  # fmt: skip
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


async def measure_lifecycles(api: Api, url: str, folder: Path, count: int) -> None:
    """Print the cost of complete lifecycles: writes, Events, reads and CPU time per FineTuneJob."""
    changes: list[str] = []
    watch = asyncio.create_task(api.count_changes(OURS.jobs, changes))
    with run_operator(OURS, url, folder) as operator:
        await warm_up(api, OURS, -1)
        changes.clear()
        new = await run_burst(api, OURS, operator, "lifecycle", count)
        cpu_before = operator.cpu_seconds()
        await run_all((lifecycles.complete_lifecycle(api, f"lifecycle-{number}") for number in range(count)), 64)
        await api.wait_until(lambda: lifecycles.are_all_complete(api, "lifecycle-"))
        calls = new.calls + count_operator_calls(await wait_until_settled(api, OURS, []))
        cpu = new.cpu + 1000 * (operator.cpu_seconds() - cpu_before) / count
    watch.cancel()
    print(f"\n{count} complete lifecycles: created, running, complete\n")
    print("| Status writes/job | Unchanged status writes | Job writes/job | Events/job | Reads/job | CPU ms/job |")
    print("|" + " --- |" * 6)
    writes = calls["patch finetunejobs/status"]
    unchanged_writes = writes - sum(name.startswith("lifecycle-") for name in changes)
    jobs, events = calls["create jobs"] + calls["patch jobs"], calls["create events"]
    reads = sum(calls[kind] for kind in calls if kind.startswith(("get", "list")))
    columns = [f"{value / count:.2f}" for value in (jobs, events, reads)]
    print(f"| {writes / count:.2f} | {unchanged_writes} | {' | '.join(columns)} | {cpu:.2f} |", flush=True)


async def measure(url: str, log: Path, folder: Path, options: argparse.Namespace) -> None:
    """Print all tables except those of restarts."""
    async with connect(url, log) as api:
        await prepare_cluster(api)
        if options.rounds:
            await compare_bursts(api, url, folder, options.rounds, options.jobs)
            await measure_lifecycles(api, url, folder, options.jobs)
        if options.flood:
            await measure_flood(api, url, folder, options.flood)


async def measure_schedules_and_sweeps(url: str, log: Path, folder: Path, options: argparse.Namespace) -> None:
    """Print the table of schedules and sweeps, on a separate API server."""
    async with connect(url, log) as api:
        await prepare_cluster(api)
        await measure_owners(api, url, folder, options.schedules, options.sweeps, options.trials)


async def measure_restarts(url: str, log: Path, folder: Path, case: tuple[Subject, Sequence[int]]) -> None:
    """Print the table of restarts of one operator, on a separate API server."""
    async with connect(url, log) as api:
        await prepare_cluster(api)
        await run_restart_series(api, url, folder, *case)


def main() -> None:
    """Print all tables. This takes half an hour, mostly for storing finished jobs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, help="new jobs per round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of bursts; 0 skips bursts and lifecycles")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1000, 5000, 10000], help="numbers of finished jobs at a restart"
    )
    parser.add_argument(
        "--peer-sizes",
        type=int,
        nargs="*",
        default=[1000, 5000],
        help="numbers of finished jobs at a restart of Kubeflow Trainer",
    )
    parser.add_argument("--flood", type=int, default=5000, help="jobs that one namespace creates at once; 0 skips this")
    parser.add_argument("--schedules", type=int, default=1000, help="schedules; 0 skips schedules and sweeps")
    parser.add_argument("--sweeps", type=int, default=100, help="sweeps")
    parser.add_argument("--trials", type=int, default=50, help="trials of each sweep")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        print(
            f"{os.cpu_count()} cores; load average at the start: {os.getloadavg()[0]:.1f}; our operator runs on "
            f"{choose_interpreter()}"
        )
        with serve(folder / "bursts") as (url, log):
            asyncio.run(measure(url, log, folder, options))
        if options.schedules:
            with serve(folder / "owners") as (url, log):
                asyncio.run(measure_schedules_and_sweeps(url, log, folder, options))
        for subject, sizes in ((OURS, options.sizes), (TRAINER, options.peer_sizes)):
            if sizes:
                with serve(folder / subject.child) as (url, log):
                    asyncio.run(measure_restarts(url, log, folder, (subject, sizes)))


if __name__ == "__main__":
    main()
