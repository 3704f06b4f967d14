"""The controller of FineTuneSchedules."""

from __future__ import annotations

from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.controller.controller import Controller
from finetune_operator.controller.finetuneschedule.gauges import collect_schedule_gauges
from finetune_operator.controller.finetuneschedule.reconciler import ScheduleReconciler
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.kube.client import FINETUNESCHEDULES, KubeClient
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.settings import Settings


def build_schedule_controller(client: KubeClient, settings: Settings, profile_store: ProfileStore) -> Controller:
    """Return a controller of FineTuneSchedules with an empty cache."""
    cache = OwnerCache(SCHEDULE_KIND, FINETUNESCHEDULES)
    return Controller(
        kind=SCHEDULE_KIND,
        informer=cache,
        reconciler=ScheduleReconciler(cache, client, settings, client.now, profile_store),
        collect_metrics=lambda: collect_schedule_gauges(cache, settings.metrics_max_jobs),
    )
