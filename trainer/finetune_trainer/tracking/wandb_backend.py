"""Weights & Biases, by its own client. One run per FineTuneJob, under its id."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.tracking.run_metadata import Described
from finetune_trainer.tracking.tracker import End, Point, Refused, Status, refusals

if TYPE_CHECKING:
    from wandb import Run, Settings

_PUBLIC = "https://api.wandb.ai"
_SETTINGS = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
_EXIT_CODES = {Status.FINISHED: 0, Status.FAILED: 1, Status.STOPPED: 143}


@dataclass
class WandbSink:
    """A run in a project. What it is told it sends on in a process of its own, which repeats what fails."""

    uri: str | None
    experiment: str
    described: Described
    credentials: Mapping[str, str] = field(repr=False)
    folder: Path
    _run: Run | None = None

    def __post_init__(self) -> None:
        """In the main thread, since a library that reads the environment meanwhile may crash."""
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)

    @property
    def where(self) -> str:
        """As messages call it."""
        return f"wandb at {self.uri or _PUBLIC}"

    def open(self) -> str:
        with refusals():
            import wandb

            try:
                run = self._run = self._begun()
            except Exception:
                wandb.teardown()  # else its process still holds the run, and the next try is refused for that
                raise
        return f"wandb writes to {self.folder}" if run.offline else str(run.url)

    def _begun(self) -> Run:
        import wandb

        entity, _, project = self.experiment.rpartition("/")
        self.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            entity=entity or None,
            project=project,
            id=self.described.id,
            name=self.described.name,
            config={**self.described.params, **self.described.tags},
            resume="allow",
            dir=self.folder,
            settings=self._settings(),
        )

    def send(self, points: Sequence[Point]) -> None:
        with refusals():
            for point in points:
                self._opened().log(dict(point.metrics), step=point.step)

    def end(self, end: End) -> None:
        run = self._opened()
        with refusals():
            run.config.update(dict(end.tags), allow_val_change=True)
            run.summary.update(dict(end.metrics))
            run.finish(exit_code=_EXIT_CODES[end.status])

    def _opened(self) -> Run:
        if self._run is None:
            raise Refused("no run was begun")
        return self._run

    def _settings(self) -> Settings:
        """Metrics and config, and nothing of the machine, its programs or what they print."""
        from wandb import Settings

        own: dict[str, Any] = {"base_url": self.uri} if self.uri else {}
        if "WANDB_API_KEY" in self.credentials:
            own["api_key"] = self.credentials["WANDB_API_KEY"]
        return Settings(
            console="off",
            silent=True,
            host="trainer",  # else this machine's name
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=20,
            login_timeout=1,  # nobody is there to be asked for a key
            **own,
        )
