"""Tracking in MLflow. All attempts of a FineTuneJob use one run, which they find by its tag."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.tracking.run_metadata import RUN_ID_TAG, RunMetadata
from finetune_trainer.tracking.tracker import MetricPoint, RunEnd, RunEndStatus, translate_tracker_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_MAX_METRICS_PER_REQUEST, _MAX_PARAMS_PER_REQUEST = 1000, 100
"""Limits per request: https://mlflow.org/docs/latest/rest-api.html#request-limits"""
_MAX_PARAM_CHARACTERS = 500
"""Limit of older servers."""
_CLIENT_ENV = {
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # `Tracker` retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_MLFLOW_STATUS = {RunEndStatus.FINISHED: "FINISHED", RunEndStatus.FAILED: "FAILED", RunEndStatus.STOPPED: "KILLED"}


@dataclass
class MlflowBackend:
    """A run in an experiment on an MLflow server."""

    uri: str
    experiment: str
    metadata: RunMetadata
    credentials: Mapping[str, str] = field(repr=False)
    _run_id: str = ""
    _last_steps: dict[str, int] = field(default_factory=dict)
    """Last step of each metric on the server: an attempt repeats steps after the checkpoint."""

    def __post_init__(self) -> None:
        """Configure the client, which only reads the environment. Existing variables take precedence.

        Runs in the main thread, since a library that reads the environment at the same time may crash.
        """
        os.environ.update(self.credentials)
        for name, value in _CLIENT_ENV.items():
            os.environ.setdefault(name, value)

    @property
    def display_name(self) -> str:
        """Name of the server in messages."""
        return f"mlflow at {self.uri}"

    def open(self) -> str:
        with translate_tracker_errors():
            client, experiment_id = self._create_client(), self._find_or_create_experiment()
            runs = client.search_runs([experiment_id], f"tags.`{RUN_ID_TAG}` = '{self.metadata.run_id}'", max_results=1)
            self._run_id = self._resume_run(runs[0]) if runs else self._create_run(experiment_id)
        return f"{self.uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{self._run_id}"

    def send(self, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(point.time * 1000), point.step)
            for point in points
            for name, value in point.metrics.items()
            if point.step > self._last_steps.get(name, -1)
        ]
        with translate_tracker_errors():
            self._log_metrics(metrics)

    def end(self, run_end: RunEnd) -> None:
        from mlflow.entities import Metric, RunTag

        timestamp_ms, step = round(time.time() * 1000), max(self._last_steps.values(), default=0)
        metrics = [Metric(name, value, timestamp_ms, step) for name, value in run_end.metrics.items()]
        tags = [RunTag(name, value) for name, value in run_end.tags.items()]
        with translate_tracker_errors():
            self._create_client().log_batch(self._run_id, metrics=metrics, tags=tags)
            self._create_client().set_terminated(self._run_id, _MLFLOW_STATUS[run_end.status])

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Send metrics in batches. Batches that the server has accepted are not sent again after a failure."""
        for start in range(0, len(metrics), _MAX_METRICS_PER_REQUEST):
            batch = metrics[start : start + _MAX_METRICS_PER_REQUEST]
            self._create_client().log_batch(self._run_id, metrics=batch)
            self._last_steps |= {metric.key: metric.step for metric in batch}

    def _find_or_create_experiment(self) -> str:
        client = self._create_client()
        experiment = client.get_experiment_by_name(self.experiment)
        experiment_id: str = experiment.experiment_id if experiment else client.create_experiment(self.experiment)
        return experiment_id

    def _create_run(self, experiment_id: str) -> str:
        from mlflow.entities import Param

        client = self._create_client()
        created_run = client.create_run(experiment_id, tags=dict(self.metadata.tags), run_name=self.metadata.name)
        run_id: str = created_run.info.run_id
        params = [Param(name, value[:_MAX_PARAM_CHARACTERS]) for name, value in self.metadata.params.items()]
        for start in range(0, len(params), _MAX_PARAMS_PER_REQUEST):
            client.log_batch(run_id, params=params[start : start + _MAX_PARAMS_PER_REQUEST])
        return run_id

    def _resume_run(self, run: Run) -> str:
        """Resume the run of an earlier attempt. Returns its ID."""
        client, run_id = self._create_client(), str(run.info.run_id)
        client.update_run(run_id, "RUNNING")
        for name in run.data.metrics:
            self._last_steps[name] = max(metric.step for metric in client.get_metric_history(run_id, name))
        return run_id

    def _create_client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)
