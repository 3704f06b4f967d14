"""One attempt of a run, as its tracker sees it: from `spec.tracking` to how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.contract import Outcome, Tracking, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.telemetry.termination_message import RunContext
from finetune_trainer.tracking import credentials
from finetune_trainer.tracking.mlflow_backend import MlflowBackend
from finetune_trainer.tracking.run_metadata import RunMetadata, build_result_tags, build_run_metadata
from finetune_trainer.tracking.tracker import RunEnd, RunEndStatus, Tracker, TrackerBackend
from finetune_trainer.tracking.wandb_backend import WandbBackend

_DEFAULT_EXPERIMENT = "finetune"


@contextmanager
def track_run(config: TrainerConfig, digest: str, folder: Path, context: RunContext) -> Iterator[None]:
    """The first worker has a tracker in this block, if a server is asked for, and it hears of a bad end."""
    if config.tracking and config.tracking.tool != "tensorboard" and topology.is_rank_zero():
        context.tracker = Tracker(_build_backend(config.tracking, build_run_metadata(config, digest), folder))
    try:
        yield
    except Exception:
        _close_tracker(context, RunEnd(RunEndStatus.FAILED))
        raise
    except BaseException:
        _close_tracker(context, RunEnd(RunEndStatus.STOPPED))
        raise


def finish_run(context: RunContext, manifest: AdapterManifest, published: Outcome) -> str | None:
    """A good end. Returns what the tracker did not take, if there is anything."""
    metrics = {name: value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return _close_tracker(context, RunEnd(RunEndStatus.FINISHED, metrics, build_result_tags(manifest, published)))


def _close_tracker(context: RunContext, run_end: RunEnd) -> str | None:
    return context.tracker.close(run_end) if context.tracker else None


def _build_backend(tracking_config: Tracking, metadata: RunMetadata, folder: Path) -> TrackerBackend:
    experiment, secrets = (
        tracking_config.experiment or _DEFAULT_EXPERIMENT,
        credentials.read_credentials(tracking_config),
    )
    if tracking_config.tool == "mlflow":
        return MlflowBackend(tracking_config.uri or "", experiment, metadata, secrets)
    return WandbBackend(tracking_config.uri, experiment, metadata, secrets, folder / "wandb")
