"""Schedules and sweeps: calls, CPU time and memory of the operator while they idle, start runs and end trials."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.api import Api, Call, count_operator_calls, run_all
from tests.bench.operators import OURS, OperatorProcess, run_operator

from finetune_operator.api import API_VERSION
from finetune_operator.api.schedule import SCHEDULE_KIND, SCHEDULE_PLURAL
from finetune_operator.api.sweep import SWEEP_KIND, SWEEP_PLURAL

Body = dict[str, Any]
_NAMESPACE_PATH = f"/apis/{API_VERSION}/namespaces/default"
_IDLE_SECONDS = 60.0
_DIGEST = f"sha256:{'0' * 64}"


class Cost(NamedTuple):
    """What the operator needed for a phase of the benchmark."""

    seconds: float
    cpu_seconds: float
    calls: Counter[str]
    rss_mib: float

    def to_row(self, name: str, count: int) -> str:
        """Return a row of the table, per object of the phase."""
        reads = sum(number for call, number in self.calls.items() if call.startswith(("get", "list")))
        writes = sum(self.calls.values()) - reads - sum(n for call, n in self.calls.items() if "watch" in call)
        per_object = 1000 * self.cpu_seconds / count
        columns = (f"{self.seconds:.0f}", f"{per_object:.1f}", f"{writes / count:.2f}", f"{reads / count:.2f}")
        return f"| {name} | {' | '.join(columns)} | {self.rss_mib:.0f} |"


def _build_template() -> Body:
    spec = OURS.body("template")["spec"]
    spec["output"] = {"uri": "s3://adapters/{name}"}
    spec["dataset"]["validation"] = {"sources": [{"uri": "s3://data/held-out.jsonl"}]}
    return {"spec": spec}


def _build_schedule(number: int) -> Body:
    spec = {"template": _build_template(), "schedule": f"{number % 60} 3 1 1 *"}
    return {"apiVersion": API_VERSION, "kind": SCHEDULE_KIND, "metadata": {"name": f"s-{number}"}, "spec": spec}


def _build_sweep(number: int, trials: int) -> Body:
    spec = {
        "template": _build_template(),
        "parameters": {"learningRate": {"min": 1e-5, "max": 1e-2, "scale": "log"}},
        "search": {"type": "random", "trials": trials},
        "maxParallel": trials,
        "output": {"uri": f"s3://adapters/sweep-{number}/"},
    }
    return {"apiVersion": API_VERSION, "kind": SWEEP_KIND, "metadata": {"name": f"w-{number}"}, "spec": spec}


async def _measure(
    api: Api, operator: OperatorProcess, work: Iterable[Awaitable[object]], is_done: Callable[[list[Call]], bool]
) -> Cost:
    """Do the work, wait until `is_done` for the calls so far, and return what the operator needed."""
    api.read_new_calls()
    started, cpu = time.monotonic(), operator.cpu_seconds()
    await run_all(work)
    calls: list[Call] = []
    while not is_done(calls):
        await asyncio.sleep(0.5)
        calls += [call for call in api.read_new_calls() if call.user == "operator"]
    seconds = time.monotonic() - started
    return Cost(seconds, operator.cpu_seconds() - cpu, count_operator_calls(calls), operator.rss_kib() / 1024)


def _count(calls: Iterable[Call], verb: str, resource: str) -> int:
    return sum(call.verb == verb and call.resource == resource for call in calls)


def _count_names(calls: Iterable[Call], verb: str, resource: str) -> int:
    return len({call.name for call in calls if (call.verb, call.resource) == (verb, resource)})


async def _complete(api: Api, name: str, loss: float) -> None:
    """Write the status of a complete run, as the reconciler of FineTuneJobs would."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Complete", "status": "True", "reason": "Completed", "message": "", "lastTransitionTime": now,
        "observedGeneration": 1,
    }  # fmt: skip
    result = {
        "adapterURI": f"s3://adapters/{name}", "digest": _DIGEST, "modelRevision": "r", "metrics": {"evalLoss": loss},
        "verdicts": {"forgetting": "none"},
    }  # fmt: skip
    status = {"conditions": [condition], "phase": "Complete", "completionTime": now, "result": result, "gpuSeconds": 9}
    await api.call("PATCH", f"{_NAMESPACE_PATH}/finetunejobs/{name}/status", {"status": status})


async def measure_owners(api: Api, url: str, folder: Path, schedules: int, sweeps: int, trials: int) -> None:
    """Print the table of schedules and sweeps."""
    print(f"\n{schedules} schedules; {sweeps} sweeps of {trials} trials. CPU, writes and reads are per object.\n")
    print("| Phase | Seconds | CPU ms | Writes | Reads | RSS, MiB |")
    print("|" + " --- |" * 6)
    with run_operator(OURS, url, folder) as operator:
        await asyncio.sleep(20)  # the lists and watches of the start
        await _measure_schedules(api, operator, schedules)
        await _measure_sweeps(api, operator, sweeps, trials)


async def _measure_schedules(api: Api, operator: OperatorProcess, count: int) -> None:
    path, status = f"{_NAMESPACE_PATH}/{SCHEDULE_PLURAL}", f"{SCHEDULE_PLURAL}/status"
    created = await _measure(
        api, operator, (api.create(path, _build_schedule(number)) for number in range(count)),
        lambda calls: _count_names(calls, "patch", status) >= count,
    )  # fmt: skip
    print(created.to_row("schedule created", count), flush=True)
    deadline = time.monotonic() + _IDLE_SECONDS
    idle = await _measure(api, operator, (), lambda _: time.monotonic() > deadline)
    print(idle.to_row(f"{count} schedules idle", count), flush=True)
    run_at = {"spec": {"runAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}}
    started = await _measure(
        api, operator, (api.call("PATCH", f"{path}/s-{number}", run_at) for number in range(count)),
        lambda calls: _count(calls, "create", "finetunejobs") >= count and _count(calls, "create", "jobs") >= count,
    )  # fmt: skip
    print(started.to_row("run started", count), flush=True)


async def _measure_sweeps(api: Api, operator: OperatorProcess, count: int, trials: int) -> None:
    path = f"{_NAMESPACE_PATH}/{SWEEP_PLURAL}"
    names = [f"w-{sweep}-{trial}" for sweep, trial in itertools.product(range(count), range(1, trials + 1))]
    created = await _measure(
        api, operator, (api.create(path, _build_sweep(number, trials)) for number in range(count)),
        lambda calls: _count(calls, "create", "jobs") >= len(names),
    )  # fmt: skip
    print(created.to_row("trial checked and created", len(names)), flush=True)
    ended = await _measure(
        api, operator, (_complete(api, name, 1 + index % trials / 100) for index, name in enumerate(names)),
        lambda calls: _count(calls, "create", "jobs") >= count,  # the tasks that write the reports
    )  # fmt: skip
    print(ended.to_row("trial completed", len(names)), flush=True)
