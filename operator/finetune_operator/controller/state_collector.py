"""Gauges of the operator and of FineTuneJobs, computed from the object cache at each scrape."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_operator.api import Phase
from finetune_operator.api.run_policy import wanted
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube.cache import Store, key_of, name_key
from finetune_operator.kube.namespace_access import Namespaces
from finetune_operator.observed import objects
from finetune_operator.observed.objects import Body
from finetune_operator.status.usage import moment

_HEADLINES = ("Complete", "Failed", "Running")

# Progress of a running trainer: name of the gauge, field of the status, help text.
_PROGRESS = (
    ("loss", "loss", "Mean training loss per supervised token of the last logged step."),
    ("eval_loss", "evalLoss", "Mean loss per supervised token on the validation data."),
    ("step", "step", "Optimizer steps done."),
    ("steps", "totalSteps", "Total optimizer steps."),
    ("tokens_per_second", "tokensPerSecond", "Tokens trained per second, without padding."),
    ("estimated_remaining_seconds", "estimatedRemainingSeconds", "Estimated seconds until the end of the training."),
)


def operator_gauges(store: Store, queue: WorkQueue | None, leads: bool, namespaces: Namespaces) -> Iterator[Metric]:
    """Yield the gauges of this replica."""
    listed = time.time() - namespaces.silence()
    for name, text, value in (
        ("leader", "1 if this replica is the leader, otherwise 0.", float(leads)),
        ("queue_depth", "FineTuneJobs in the work queue.", queue.depth() if queue else 0),
        ("queue_longest_wait_seconds", "Age of the oldest queued FineTuneJob.", queue.longest_wait() if queue else 0),
        ("longest_reconcile_seconds", "Age of the oldest running reconcile.", queue.longest_work() if queue else 0),
        ("last_list_timestamp_seconds", "Time of the last successful full list.", listed),
    ):
        yield GaugeMetricFamily(f"finetune_operator_{name}", text, value)
    family = GaugeMetricFamily(
        "finetune_operator_stored_objects",
        "Objects in the cache. Of a finished run only the FineTuneJob is kept.",
        labels=["resource"],
    )
    for resource, shelf in (("finetunejobs", store.finetunejobs), ("jobs", store.jobs), ("pods", store.pods)):
        family.add_metric([resource], len(shelf))
    yield family
    yield _readable(namespaces)


def _readable(namespaces: Namespaces) -> Metric:
    family = GaugeMetricFamily(
        "finetune_operator_namespace_readable",
        "1 if the operator can list the watched namespace, otherwise 0.",
        labels=["namespace"],
    )
    refused = namespaces.refused()
    for name in namespaces.names():
        family.add_metric([name], float(name not in refused))
    return family


def job_gauges(store: Store, limit: int) -> Iterator[Metric]:
    """Yield the gauges of FineTuneJobs, with series for at most `limit` running ones.

    FineTuneJobs in unreadable namespaces are omitted, because their state is unknown.
    """
    known = [body for body in store.finetunejobs if body["metadata"]["namespace"] not in store.unreadable]
    yield _jobs(known)
    yield _gpus(store)
    running = sorted((body for body in known if _phase(body) == Phase.RUNNING), key=name_key)
    yield from _running(list(islice(running, limit)))
    omitted = max(0, len(running) - limit)
    text = f"Running FineTuneJobs without series of their own. Only the first {limit} by name have them."
    yield GaugeMetricFamily("finetune_running_jobs_omitted", text, omitted)


def _jobs(bodies: Iterable[Body]) -> Metric:
    family = GaugeMetricFamily(
        "finetune_jobs", "FineTuneJobs by phase and reason.", labels=["namespace", "phase", "reason"]
    )
    counts = Counter((body["metadata"]["namespace"], _phase(body), _reason(body)) for body in bodies)
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _gpus(store: Store) -> Metric:
    family = GaugeMetricFamily("finetune_gpus", "GPUs held by running trainers.", labels=["namespace"])
    pods = Counter(key_of(pod) for pod in store.pods if objects.is_running(pod))
    counts: Counter[str] = Counter()
    for key, count in pods.items():
        if key[0] in store.unreadable:
            continue
        for body in store.finetunejobs.of(key):
            counts[key[0]] += count * wanted(body).gpus
    for namespace, gpus in counts.items():
        family.add_metric([namespace], gpus)
    return family


def _running(bodies: list[Body]) -> Iterator[Metric]:
    said = [(name_key(body), _numbers(body["status"].get("progress")), body["status"]) for body in bodies]
    ratio = _family("progress_ratio", "Fraction of the optimizer steps that are done, 0 to 1.")
    checkpoint = _family("last_checkpoint_timestamp_seconds", "Time when the latest checkpoint was completed.")
    for key, progress, status in said:
        if "percentage" in progress:
            ratio.add_metric(key, progress["percentage"] / 100)
        if (saved := moment(status.get("lastCheckpointTime"))) is not None:
            checkpoint.add_metric(key, saved)
    yield from (ratio, checkpoint)
    for name, field, text in _PROGRESS:
        family = _family(name, text)
        for key, progress, _ in said:
            if field in progress:
                family.add_metric(key, progress[field])
        yield family


def _numbers(progress: object) -> dict[str, float]:
    """Return the numbers in a stored progress, which may not conform to the schema."""
    found = progress.items() if isinstance(progress, dict) else ()
    return {name: value for name, value in found if isinstance(value, int | float)}


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"finetune_job_{name}", f"{text} Running FineTuneJobs only.", labels=["namespace", "name"])


def _phase(body: Body) -> str:
    """Return the phase of a FineTuneJob, Pending if it was not reconciled yet."""
    return str(body.get("status", {}).get("phase", Phase.PENDING))


def _reason(body: Body) -> str:
    """Return the reason of the condition that the phase is based on."""
    conditions = {each["type"]: each for each in body.get("status", {}).get("conditions") or []}
    found: Body = next((conditions[kind] for kind in _HEADLINES if kind in conditions), {})
    return str(found.get("reason", ""))
