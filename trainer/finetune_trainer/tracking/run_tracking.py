"""One attempt of a run, as its tracker sees it: from `spec.tracking` to how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.contract import Outcome, Tracking, TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.telemetry.termination_message import Known
from finetune_trainer.tracking import credentials
from finetune_trainer.tracking.mlflow_backend import MlflowSink
from finetune_trainer.tracking.run_metadata import Described, describe, result_tags
from finetune_trainer.tracking.tracker import End, Sink, Status, Tracker
from finetune_trainer.tracking.wandb_backend import WandbSink

_EXPERIMENT = "finetune"


@contextmanager
def tracked(config: TrainerConfig, digest: str, folder: Path, known: Known) -> Iterator[None]:
    """The first worker has a tracker in this block, if a server is asked for, and it hears of a bad end."""
    if config.tracking and config.tracking.tool != "tensorboard" and topology.is_first():
        known.tracker = Tracker(_sink(config.tracking, describe(config, digest), folder))
    try:
        yield
    except Exception:
        _close(known, End(Status.FAILED))
        raise
    except BaseException:
        _close(known, End(Status.STOPPED))
        raise


def end(known: Known, manifest: AdapterManifest, published: Outcome) -> str | None:
    """A good end. Returns what the tracker did not take, if there is anything."""
    metrics = {name: value for name, value in manifest.metrics.items() if math.isfinite(value)}
    return _close(known, End(Status.FINISHED, metrics, result_tags(manifest, published)))


def _close(known: Known, end: End) -> str | None:
    return known.tracker.close(end) if known.tracker else None


def _sink(asked: Tracking, described: Described, folder: Path) -> Sink:
    experiment, who = asked.experiment or _EXPERIMENT, credentials.read(asked)
    if asked.tool == "mlflow":
        return MlflowSink(asked.uri or "", experiment, described, who)
    return WandbSink(asked.uri, experiment, described, who, folder / "wandb")
