"""The controller of FineTuneJobs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client.core import Metric

from finetune_operator.api import KIND
from finetune_operator.controller.controller import Controller
from finetune_operator.controller.finetunejob import gauges
from finetune_operator.controller.finetunejob.cleaning_poller import CleaningPoller
from finetune_operator.controller.finetunejob.progress_poller import ProgressPoller
from finetune_operator.controller.finetunejob.reconciler import FineTuneJobReconciler
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.namespace_access import Scope
from finetune_operator.settings import Settings


def build_controller(
    client: KubeClient,
    settings: Settings,
    profile_store: ProfileStore,
    list_scopes: Callable[[], Collection[Scope]],
) -> Controller:
    """Return a controller of FineTuneJobs with an empty cache. `list_scopes` returns the watched namespaces."""
    cache = FineTuneJobCache()

    def collect_metrics() -> Iterator[Metric]:
        yield from gauges.collect_job_gauges(cache, settings.metrics_max_jobs)
        yield gauges.build_profiles_gauge(profile_store.check())

    return Controller(
        kind=KIND,
        informer=cache,
        reconciler=FineTuneJobReconciler(cache, client, settings, client.now, profile_store),
        pollers=(
            ProgressPoller(cache, settings.progress_interval),
            CleaningPoller(cache, client, settings, list_scopes),
        ),
        collect_metrics=collect_metrics,
    )
