"""Gauges of FineTuneJobs, computed from the object cache at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_operator.api import Phase
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import read_run_policy
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache, get_finetunejob_key, get_owner_key
from finetune_operator.observed.objects import parse_timestamp
from finetune_operator.observed.pod import is_trainer_running

_HEADLINE_CONDITIONS = ("Complete", "Failed", "Cancelled", "Running")

# Progress of a running trainer: name of the gauge, field of the status, help text.
_PROGRESS_GAUGES = (
    ("loss", "loss", "Mean training loss of the last logged step: per supervised token (sft) or per row (dpo, kto)."),
    ("eval_loss", "evalLoss", "Mean loss on the validation data: per supervised token (sft) or per row (dpo, kto)."),
    ("step", "step", "Optimizer steps done."),
    ("steps", "totalSteps", "Total optimizer steps."),
    ("tokens_per_second", "tokensPerSecond", "Tokens trained per second, without padding."),
    ("estimated_remaining_seconds", "estimatedRemainingSeconds", "Estimated seconds until the end of the training."),
)


def collect_job_gauges(cache: FineTuneJobCache, limit: int) -> Iterator[Metric]:
    """Yield the gauges of FineTuneJobs, with series for at most `limit` running ones.

    FineTuneJobs in unreadable namespaces are omitted, because their state is unknown.
    """
    readable = [body for body in cache.finetunejobs if body["metadata"]["namespace"] not in cache.unreadable_namespaces]
    yield _build_jobs_gauge(readable)
    yield _build_gpus_gauge(cache)
    for name, help_text, keys in (
        ("unreadable_objects", "FineTuneJobs of a newer version, which are left alone.", cache.unreadable_objects),
        ("foreign_jobs", "FineTuneJobs whose Job another installation has created.", cache.foreign_jobs),
    ):
        family = GaugeMetricFamily(f"finetune_{name}", help_text, labels=["namespace"])
        for namespace, count in Counter(key.namespace for key in keys).items():
            family.add_metric([namespace], count)
        yield family
    running = sorted((body for body in readable if _get_phase(body) == Phase.RUNNING), key=get_finetunejob_key)
    yield from _build_running_gauges(list(islice(running, limit)))
    omitted = max(0, len(running) - limit)
    help_text = f"Running FineTuneJobs without series of their own. Only the first {limit} by name have them."
    yield GaugeMetricFamily("finetune_running_jobs_omitted", help_text, omitted)


def build_profiles_gauge(is_valid: bool) -> Metric:
    """Return the gauge that shows whether the file of compute profiles is valid."""
    help_text = "1 if the file of compute profiles is invalid, so that the last valid one is used, otherwise 0."
    return GaugeMetricFamily("finetune_profiles_invalid", help_text, float(not is_valid))


def _build_jobs_gauge(bodies: Iterable[Body]) -> Metric:
    family = GaugeMetricFamily(
        "finetune_jobs", "FineTuneJobs by phase and reason.", labels=["namespace", "phase", "reason"]
    )
    counts = Counter((body["metadata"]["namespace"], _get_phase(body), _get_reason(body)) for body in bodies)
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _build_gpus_gauge(cache: FineTuneJobCache) -> Metric:
    family = GaugeMetricFamily("finetune_gpus", "GPUs held by running trainers.", labels=["namespace"])
    pods = Counter(get_owner_key(pod) for pod in cache.pods if is_trainer_running(pod))
    counts: Counter[str] = Counter()
    for key, count in pods.items():
        if key.namespace in cache.unreadable_namespaces:
            continue
        for body in cache.finetunejobs.list_by_key(key):
            counts[key.namespace] += count * read_run_policy(body).gpus_per_node
    for namespace, gpus in counts.items():
        family.add_metric([namespace], gpus)
    return family


def _build_running_gauges(bodies: list[Body]) -> Iterator[Metric]:
    rows = [(_get_labels(body), _select_numbers(body["status"].get("progress")), body["status"]) for body in bodies]
    progress_ratio = _create_job_family("progress_ratio", "Fraction of the optimizer steps that are done, 0 to 1.")
    checkpoint_time = _create_job_family(
        "last_checkpoint_timestamp_seconds", "Time when the latest checkpoint was completed."
    )
    for labels, progress, status in rows:
        if "percentage" in progress:
            progress_ratio.add_metric(labels, progress["percentage"] / 100)
        if (saved_at := parse_timestamp(status.get("lastCheckpointTime"))) is not None:
            checkpoint_time.add_metric(labels, saved_at)
    yield from (progress_ratio, checkpoint_time)
    for name, field, help_text in _PROGRESS_GAUGES:
        family = _create_job_family(name, help_text)
        for labels, progress, _ in rows:
            if field in progress:
                family.add_metric(labels, progress[field])
        yield family


def _get_labels(body: Body) -> list[str]:
    return [body["metadata"]["namespace"], body["metadata"]["name"]]


def _select_numbers(progress: object) -> dict[str, float]:
    """Return the numbers in a stored progress, which may not conform to the schema."""
    entries = progress.items() if isinstance(progress, dict) else ()
    return {name: value for name, value in entries if isinstance(value, int | float)}


def _create_job_family(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        f"finetune_job_{name}", f"{help_text} Running FineTuneJobs only.", labels=["namespace", "name"]
    )


def _get_phase(body: Body) -> str:
    """Return the phase of a FineTuneJob, Pending if it was not reconciled yet."""
    return str(body.get("status", {}).get("phase", Phase.PENDING))


def _get_reason(body: Body) -> str:
    """Return the reason of the condition that the phase is based on."""
    conditions = {condition["type"]: condition for condition in body.get("status", {}).get("conditions") or []}
    headline: Body = next((conditions[kind] for kind in _HEADLINE_CONDITIONS if kind in conditions), {})
    return str(headline.get("reason", ""))
