"""What stands in the operator's store, as gauges: computed when Prometheus asks, kept nowhere. Pure."""

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

# Of a running trainer's progress: name of the gauge, field of the status, help.
_PROGRESS = (
    ("loss", "loss", "Mean loss per learnt token of the last logged step."),
    ("eval_loss", "evalLoss", "Mean loss per learnt token of the validation data."),
    ("step", "step", "Optimizer steps done."),
    ("steps", "totalSteps", "Optimizer steps in all."),
    ("tokens_per_second", "tokensPerSecond", "Tokens trained per second, padding not counted."),
    ("estimated_remaining_seconds", "estimatedRemainingSeconds", "Seconds of training left at this pace."),
)


def operator_gauges(store: Store, queue: WorkQueue | None, leads: bool, namespaces: Namespaces) -> Iterator[Metric]:
    """All that is said of this replica."""
    listed = time.time() - namespaces.silence()
    for name, text, value in (
        ("leader", "1 for the replica that works.", float(leads)),
        ("queue_depth", "FineTuneJobs that wait for a worker.", queue.depth() if queue else 0),
        ("queue_longest_wait_seconds", "How long the first of them has waited.", queue.longest_wait() if queue else 0),
        ("longest_reconcile_seconds", "How long the slowest worker has worked.", queue.longest_work() if queue else 0),
        ("last_list_timestamp_seconds", "When everything was last listed.", listed),
    ):
        yield GaugeMetricFamily(f"finetune_operator_{name}", text, value)
    family = GaugeMetricFamily(
        "finetune_operator_stored_objects",
        "Objects kept in memory; of a run that has ended the FineTuneJob alone.",
        labels=["resource"],
    )
    for resource, shelf in (("finetunejobs", store.finetunejobs), ("jobs", store.jobs), ("pods", store.pods)):
        family.add_metric([resource], len(shelf))
    yield family
    yield _readable(namespaces)


def _readable(namespaces: Namespaces) -> Metric:
    family = GaugeMetricFamily(
        "finetune_operator_namespace_readable",
        "1 for a namespace of watchNamespaces that the operator can list, 0 for one that it cannot.",
        labels=["namespace"],
    )
    refused = namespaces.refused()
    for name in namespaces.names():
        family.add_metric([name], float(name not in refused))
    return family


def job_gauges(store: Store, limit: int) -> Iterator[Metric]:
    """All that is said of FineTuneJobs, of at most `limit` running ones each by itself. What cannot be read now is left
    out: nobody knows what has become of it."""
    known = [body for body in store.finetunejobs if body["metadata"]["namespace"] not in store.unreadable]
    yield _jobs(known)
    yield _gpus(store)
    running = sorted((body for body in known if _phase(body) == Phase.RUNNING), key=name_key)
    yield from _running(list(islice(running, limit)))
    omitted = max(0, len(running) - limit)
    text = f"Running FineTuneJobs that have no gauges of their own, for only the first {limit} by name have."
    yield GaugeMetricFamily("finetune_running_jobs_omitted", text, omitted)


def _jobs(bodies: Iterable[Body]) -> Metric:
    family = GaugeMetricFamily(
        "finetune_jobs", "FineTuneJobs that exist, by phase and reason.", labels=["namespace", "phase", "reason"]
    )
    counts = Counter((body["metadata"]["namespace"], _phase(body), _reason(body)) for body in bodies)
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _gpus(store: Store) -> Metric:
    family = GaugeMetricFamily("finetune_gpus", "GPUs that running trainers hold.", labels=["namespace"])
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
    ratio = _family("progress_ratio", "Optimizer steps done, of all.")
    checkpoint = _family("last_checkpoint_timestamp_seconds", "When the newest checkpoint in the store was whole.")
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
    """Of what was stored, which no schema may have looked at."""
    found = progress.items() if isinstance(progress, dict) else ()
    return {name: value for name, value in found if isinstance(value, int | float)}


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"finetune_job_{name}", f"{text} Running FineTuneJobs only.", labels=["namespace", "name"])


def _phase(body: Body) -> str:
    """One that nobody has looked at yet is pending."""
    return str(body.get("status", {}).get("phase", Phase.PENDING))


def _reason(body: Body) -> str:
    """Why it is in this phase, as its headline says."""
    conditions = {each["type"]: each for each in body.get("status", {}).get("conditions") or []}
    found: Body = next((conditions[kind] for kind in _HEADLINES if kind in conditions), {})
    return str(found.get("reason", ""))
