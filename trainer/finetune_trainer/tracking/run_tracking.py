"""Tracks an attempt of a run on the server that `spec.tracking` names, from its start to its end."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.contract import (
    TRACKING_CREDENTIALS_DIR_ENV,
    TRACKING_KEYS,
    Outcome,
    Reason,
    Tracking,
    TrainerConfig,
)
from finetune_trainer.distributed import topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.manifest import AdapterManifest
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


def stop_run(tracker: Tracker | None) -> None:
    """Report an attempt that stopped before the end of the training, which another attempt continues."""
    _close_tracker(tracker, RunEnd(RunEndStatus.STOPPED))


def _close_tracker(tracker: Tracker | None, run_end: RunEnd) -> str | None:
    return tracker.close(run_end) if tracker else None


def _build_backend(tracking_config: Tracking, metadata: RunMetadata, folder: Path) -> TrackerBackend:
    experiment, secrets = (
        tracking_config.experiment or _DEFAULT_EXPERIMENT,
        read_credentials(tracking_config),
    )
    if tracking_config.tool == "mlflow":
        return MlflowBackend(tracking_config.uri or "", experiment, metadata, secrets)
    return WandbBackend(tracking_config.uri, experiment, metadata, secrets, folder / "wandb")


def read_credentials(tracking_config: Tracking) -> Mapping[str, str]:
    """Return the keys of the mounted Secret, by the environment variables of the library; empty without a Secret.

    Raises `AUTH_FAILED` if required keys are missing, which the server would report only while the run is active.
    """
    folder = os.environ.get(TRACKING_CREDENTIALS_DIR_ENV)
    if not folder:
        return {}
    secrets = {name: value for name in TRACKING_KEYS[tracking_config.tool] if (value := _read_key(Path(folder), name))}
    required_key, *alternative_keys = TRACKING_KEYS[tracking_config.tool]
    if required_key not in secrets and not (alternative_keys and all(name in secrets for name in alternative_keys)):
        missing_keys = " and no ".join(
            [required_key, " and ".join(alternative_keys)] if alternative_keys else [required_key]
        )
        message = (
            f"the Secret of tracking.credentialsSecretRef does not exist or has no {missing_keys} (mounted at {folder})"
        )
        raise TrainerError(Reason.AUTH_FAILED, message)
    return secrets


def _read_key(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text().strip()
    except FileNotFoundError:
        return ""
