"""MLflow, by its own client. One run per FineTuneJob: attempts find it by its tag."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.tracking.run_metadata import RUN_TAG, Described
from finetune_trainer.tracking.tracker import End, Point, Status, refusals

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_METRICS, _PARAMS = 1000, 100
"""At most so many in a request: https://mlflow.org/docs/latest/rest-api.html#request-limits"""
_PARAM_CHARACTERS = 500
"""Older servers take no longer value."""
_SETTINGS = {
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we try again ourselves
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_STATUS = {Status.FINISHED: "FINISHED", Status.FAILED: "FAILED", Status.STOPPED: "KILLED"}


@dataclass
class MlflowSink:
    """A run in an experiment on a server."""

    uri: str
    experiment: str
    described: Described
    credentials: Mapping[str, str] = field(repr=False)
    _run: str = ""
    _known: dict[str, int] = field(default_factory=dict)
    """Up to which step the server has each metric; an attempt does some steps again."""

    def __post_init__(self) -> None:
        """The one way to tell the client; what the environment already says stands. In the main thread, since a library
        that reads the environment meanwhile may crash."""
        os.environ.update(self.credentials)
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)

    @property
    def where(self) -> str:
        """As messages call it."""
        return f"mlflow at {self.uri}"

    def open(self) -> str:
        with refusals():
            client, experiment = self._client(), self._experiment()
            found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{self.described.id}'", max_results=1)
            self._run = self._taken_up(found[0]) if found else self._made(experiment)
        return f"{self.uri.rstrip('/')}/#/experiments/{experiment}/runs/{self._run}"

    def send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(point.time * 1000), point.step)
            for point in points
            for name, value in point.metrics.items()
            if point.step > self._known.get(name, -1)
        ]
        with refusals():
            self._store(metrics)

    def end(self, end: End) -> None:
        from mlflow.entities import Metric, RunTag

        when, step = round(time.time() * 1000), max(self._known.values(), default=0)
        metrics = [Metric(name, value, when, step) for name, value in end.metrics.items()]
        tags = [RunTag(name, value) for name, value in end.tags.items()]
        with refusals():
            self._client().log_batch(self._run, metrics=metrics, tags=tags)
            self._client().set_terminated(self._run, _STATUS[end.status])

    def _store(self, metrics: Sequence[Metric]) -> None:
        """What was taken is not sent again if a later part fails."""
        for start in range(0, len(metrics), _METRICS):
            part = metrics[start : start + _METRICS]
            self._client().log_batch(self._run, metrics=part)
            self._known |= {each.key: each.step for each in part}

    def _experiment(self) -> str:
        client = self._client()
        found = client.get_experiment_by_name(self.experiment)
        identifier: str = found.experiment_id if found else client.create_experiment(self.experiment)
        return identifier

    def _made(self, experiment: str) -> str:
        from mlflow.entities import Param

        client = self._client()
        made = client.create_run(experiment, tags=dict(self.described.tags), run_name=self.described.name)
        run: str = made.info.run_id
        params = [Param(name, value[:_PARAM_CHARACTERS]) for name, value in self.described.params.items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(run, params=params[start : start + _PARAMS])
        return run

    def _taken_up(self, run: Run) -> str:
        """Of an earlier attempt."""
        client, identifier = self._client(), str(run.info.run_id)
        client.update_run(identifier, "RUNNING")
        for name in run.data.metrics:
            self._known[name] = max(each.step for each in client.get_metric_history(identifier, name))
        return identifier

    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)
