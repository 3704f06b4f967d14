"""What stands in the operator's store, as gauges: computed when Prometheus asks, kept nowhere. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_operator.api import Phase
from finetune_operator.api.run_policy import read_run_policy
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube.cache import InformerCache, get_object_key, get_owner_key
from finetune_operator.kube.namespace_access import NamespaceRegistry
from finetune_operator.observed import objects
from finetune_operator.observed.objects import Body
from finetune_operator.status.usage import parse_timestamp

_HEADLINE_CONDITIONS = ("Complete", "Failed", "Running")

# Of a running trainer's progress: name of the gauge, field of the status, help.
_PROGRESS_GAUGES = (
    ("loss", "loss", "Mean loss per learnt token of the last logged step."),
    ("eval_loss", "evalLoss", "Mean loss per learnt token of the validation data."),
    ("step", "step", "Optimizer steps done."),
    ("steps", "totalSteps", "Optimizer steps in all."),
    ("tokens_per_second", "tokensPerSecond", "Tokens trained per second, padding not counted."),
    ("estimated_remaining_seconds", "estimatedRemainingSeconds", "Seconds of training left at this pace."),
)


def collect_operator_gauges(
    cache: InformerCache, queue: WorkQueue | None, is_leader: bool, namespaces: NamespaceRegistry
) -> Iterator[Metric]:
    """All that is said of this replica."""
    last_list_time = time.time() - namespaces.compute_silence_seconds()
    for name, help_text, value in (
        ("leader", "1 for the replica that works.", float(is_leader)),
        ("queue_depth", "FineTuneJobs that wait for a worker.", queue.get_depth() if queue else 0),
        (
            "queue_longest_wait_seconds",
            "How long the first of them has waited.",
            queue.get_longest_wait() if queue else 0,
        ),
        (
            "longest_reconcile_seconds",
            "How long the slowest worker has worked.",
            queue.get_longest_processing() if queue else 0,
        ),
        ("last_list_timestamp_seconds", "When everything was last listed.", last_list_time),
    ):
        yield GaugeMetricFamily(f"finetune_operator_{name}", help_text, value)
    family = GaugeMetricFamily(
        "finetune_operator_stored_objects",
        "Objects kept in memory; of a run that has ended the FineTuneJob alone.",
        labels=["resource"],
    )
    for resource, object_cache in (("finetunejobs", cache.finetunejobs), ("jobs", cache.jobs), ("pods", cache.pods)):
        family.add_metric([resource], len(object_cache))
    yield family
    yield _build_readable_gauge(namespaces)


def _build_readable_gauge(namespaces: NamespaceRegistry) -> Metric:
    family = GaugeMetricFamily(
        "finetune_operator_namespace_readable",
        "1 for a namespace of watchNamespaces that the operator can list, 0 for one that it cannot.",
        labels=["namespace"],
    )
    unreadable = namespaces.get_unreadable()
    for name in namespaces.get_names():
        family.add_metric([name], float(name not in unreadable))
    return family


def collect_job_gauges(cache: InformerCache, limit: int) -> Iterator[Metric]:
    """All that is said of FineTuneJobs, of at most `limit` running ones each by itself. What cannot be read now is left
    out: nobody knows what has become of it."""
    readable = [body for body in cache.finetunejobs if body["metadata"]["namespace"] not in cache.unreadable_namespaces]
    yield _build_jobs_gauge(readable)
    yield _build_gpus_gauge(cache)
    running = sorted((body for body in readable if _get_phase(body) == Phase.RUNNING), key=get_object_key)
    yield from _build_running_gauges(list(islice(running, limit)))
    omitted = max(0, len(running) - limit)
    help_text = f"Running FineTuneJobs that have no gauges of their own, for only the first {limit} by name have."
    yield GaugeMetricFamily("finetune_running_jobs_omitted", help_text, omitted)


def _build_jobs_gauge(bodies: Iterable[Body]) -> Metric:
    family = GaugeMetricFamily(
        "finetune_jobs", "FineTuneJobs that exist, by phase and reason.", labels=["namespace", "phase", "reason"]
    )
    counts = Counter((body["metadata"]["namespace"], _get_phase(body), _get_reason(body)) for body in bodies)
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _build_gpus_gauge(cache: InformerCache) -> Metric:
    family = GaugeMetricFamily("finetune_gpus", "GPUs that running trainers hold.", labels=["namespace"])
    pods = Counter(get_owner_key(pod) for pod in cache.pods if objects.is_trainer_running(pod))
    counts: Counter[str] = Counter()
    for key, count in pods.items():
        if key[0] in cache.unreadable_namespaces:
            continue
        for body in cache.finetunejobs.list_by_key(key):
            counts[key[0]] += count * read_run_policy(body).gpus_per_node
    for namespace, gpus in counts.items():
        family.add_metric([namespace], gpus)
    return family


def _build_running_gauges(bodies: list[Body]) -> Iterator[Metric]:
    rows = [(get_object_key(body), _select_numbers(body["status"].get("progress")), body["status"]) for body in bodies]
    progress_ratio = _create_job_family("progress_ratio", "Optimizer steps done, of all.")
    checkpoint_time = _create_job_family(
        "last_checkpoint_timestamp_seconds", "When the newest checkpoint in the store was whole."
    )
    for key, progress, status in rows:
        if "percentage" in progress:
            progress_ratio.add_metric(key, progress["percentage"] / 100)
        if (saved_at := parse_timestamp(status.get("lastCheckpointTime"))) is not None:
            checkpoint_time.add_metric(key, saved_at)
    yield from (progress_ratio, checkpoint_time)
    for name, field, help_text in _PROGRESS_GAUGES:
        family = _create_job_family(name, help_text)
        for key, progress, _ in rows:
            if field in progress:
                family.add_metric(key, progress[field])
        yield family


def _select_numbers(progress: object) -> dict[str, float]:
    """Of what was stored, which no schema may have looked at."""
    entries = progress.items() if isinstance(progress, dict) else ()
    return {name: value for name, value in entries if isinstance(value, int | float)}


def _create_job_family(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        f"finetune_job_{name}", f"{help_text} Running FineTuneJobs only.", labels=["namespace", "name"]
    )


def _get_phase(body: Body) -> str:
    """One that nobody has looked at yet is pending."""
    return str(body.get("status", {}).get("phase", Phase.PENDING))


def _get_reason(body: Body) -> str:
    """Why it is in this phase, as its headline says."""
    conditions = {condition["type"]: condition for condition in body.get("status", {}).get("conditions") or []}
    headline: Body = next((conditions[kind] for kind in _HEADLINE_CONDITIONS if kind in conditions), {})
    return str(headline.get("reason", ""))
