"""One attempt of a run, as its tracker sees it: from `spec.tracking` to how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.contract import Outcome, Tracking, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.tracking import credentials
from finetune_trainer.tracking.mlflow_backend import MlflowBackend
from finetune_trainer.tracking.run_metadata import RunMetadata, build_result_tags, build_run_metadata
from finetune_trainer.tracking.tracker import RunEnd, RunEndStatus, Tracker, TrackerBackend
from finetune_trainer.tracking.wandb_backend import WandbBackend

_DEFAULT_EXPERIMENT = "finetune"


@contextmanager
def track_run(config: TrainerConfig, digest: str, folder: Path) -> Iterator[Tracker | None]:
    """Yield the tracker of rank 0 if `tracking` names a server; report a failed or stopped attempt when the block ends.

    The tracker is not started here: its thread must not read the environment while this thread changes it.
    """
    tracker = None
    if config.tracking and config.tracking.tool != "tensorboard" and topology.is_rank_zero():
        tracker = Tracker(_build_backend(config.tracking, build_run_metadata(config, digest), folder))
    try:
        yield tracker
    except Exception:
        _close_tracker(tracker, RunEnd(RunEndStatus.FAILED))
        raise
    except BaseException:  # a stop signal: another attempt follows
        _close_tracker(tracker, RunEnd(RunEndStatus.STOPPED))
        raise


def finish_run(tracker: Tracker | None, manifest: AdapterManifest, published: Outcome) -> str | None:
    """Report a published result. Returns what the tracker lost, if anything."""
    metrics = {name: value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return _close_tracker(tracker, RunEnd(RunEndStatus.FINISHED, metrics, build_result_tags(manifest, published)))


def _close_tracker(tracker: Tracker | None, run_end: RunEnd) -> str | None:
    return tracker.close(run_end) if tracker else None


def _build_backend(tracking_config: Tracking, metadata: RunMetadata, folder: Path) -> TrackerBackend:
    experiment, secrets = (
        tracking_config.experiment or _DEFAULT_EXPERIMENT,
        credentials.read_credentials(tracking_config),
    )
    if tracking_config.tool == "mlflow":
        return MlflowBackend(tracking_config.uri or "", experiment, metadata, secrets)
    return WandbBackend(tracking_config.uri, experiment, metadata, secrets, folder / "wandb")
