"""Tracking in Weights & Biases. All attempts of a FineTuneJob use one run, with the run ID as its ID."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.tracking.run_metadata import RunMetadata
from finetune_trainer.tracking.tracker import MetricPoint, RunEnd, RunEndStatus, TrackerError, translate_tracker_errors

if TYPE_CHECKING:
    from wandb import Run, Settings

_PUBLIC_URL = "https://api.wandb.ai"
_CLIENT_ENV = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
_EXIT_CODES = {RunEndStatus.FINISHED: 0, RunEndStatus.FAILED: 1, RunEndStatus.STOPPED: 143}


@dataclass
class WandbBackend:
    """A run in a project. The client sends from a process of its own, which retries failed requests."""

    uri: str | None
    experiment: str
    metadata: RunMetadata
    credentials: Mapping[str, str] = field(repr=False)
    folder: Path
    _run: Run | None = None

    def __post_init__(self) -> None:
        """Configure the client in the main thread: a library that reads the environment at the same time may crash."""
        for name, value in _CLIENT_ENV.items():
            os.environ.setdefault(name, value)

    @property
    def display_name(self) -> str:
        """Name of the server in messages."""
        return f"wandb at {self.uri or _PUBLIC_URL}"

    def open(self) -> str:
        with translate_tracker_errors():
            import wandb

            try:
                run = self._run = self._init_run()
            except Exception:
                wandb.teardown()  # otherwise its process keeps the run open, and the next attempt is rejected
                raise
        return f"wandb writes to {self.folder}" if run.offline else str(run.url)

    def _init_run(self) -> Run:
        import wandb

        entity, _, project = self.experiment.rpartition("/")
        self.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            entity=entity or None,
            project=project,
            id=self.metadata.run_id,
            name=self.metadata.name,
            config={**self.metadata.params, **self.metadata.tags},
            resume="allow",
            dir=self.folder,
            settings=self._build_settings(),
        )

    def send(self, points: Sequence[MetricPoint]) -> None:
        with translate_tracker_errors():
            for point in points:
                self._require_run().log(dict(point.metrics), step=point.step)

    def end(self, run_end: RunEnd) -> None:
        run = self._require_run()
        with translate_tracker_errors():
            run.config.update(dict(run_end.tags), allow_val_change=True)
            run.summary.update(dict(run_end.metrics))
            run.finish(exit_code=_EXIT_CODES[run_end.status])

    def _require_run(self) -> Run:
        if self._run is None:
            raise TrackerError("no run was started")
        return self._run

    def _build_settings(self) -> Settings:
        """Build settings that send metrics and config, but nothing about the machine, its programs or their output."""
        from wandb import Settings

        options: dict[str, Any] = {"base_url": self.uri} if self.uri else {}
        if "WANDB_API_KEY" in self.credentials:
            options["api_key"] = self.credentials["WANDB_API_KEY"]
        return Settings(
            console="off",
            silent=True,
            host="trainer",  # by default the host name
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=20,
            login_timeout=1,  # a key cannot be entered
            **options,
        )
