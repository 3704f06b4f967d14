"""The controller of FineTuneSweeps."""

from __future__ import annotations

from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.controller.controller import Controller
from finetune_operator.controller.finetunesweep.gauges import collect_sweep_gauges
from finetune_operator.controller.finetunesweep.reconciler import SweepReconciler
from finetune_operator.controller.finetunesweep.report_runner import ReportRunner
from finetune_operator.controller.finetunesweep.trial_control import TrialControl
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.controller.run_control import RunControl
from finetune_operator.controller.task_runner import TaskRunner
from finetune_operator.kube.client import FINETUNESWEEPS, KubeClient
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.settings import Settings


def build_sweep_controller(client: KubeClient, settings: Settings, profile_store: ProfileStore) -> Controller:
    """Return a controller of FineTuneSweeps with an empty cache."""
    cache = OwnerCache(SWEEP_KIND, FINETUNESWEEPS)
    return Controller(
        kind=SWEEP_KIND,
        informer=cache,
        reconciler=SweepReconciler(
            cache,
            client,
            TrialControl(cache, RunControl(client, settings, profile_store)),
            ReportRunner(TaskRunner(client, settings, profile_store), settings),
        ),
        collect_metrics=lambda: collect_sweep_gauges(cache, settings.metrics_max_jobs),
    )
