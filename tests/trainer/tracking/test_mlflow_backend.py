"""An MLflow server has one run for each FineTuneJob, and each step once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tracking_servers import MlflowServer, serve_unauthorized, serve_without_answering

from finetune_trainer.tracking.mlflow_backend import MlflowBackend
from finetune_trainer.tracking.run_metadata import RUN_ID_TAG, RunMetadata
from finetune_trainer.tracking.tracker import RunEnd, RunEndStatus, Tracker, TrackerTiming

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

PARAMS = {f"p{number:03}": "x" * 600 for number in range(150)} | {"training.maxSteps": "6"}
PATIENT_TIMING = TrackerTiming(batch_seconds=0.01, retry_seconds=0.1, close_seconds=60, stop_seconds=60)
SHORT_TIMING = TrackerTiming(batch_seconds=0.01, retry_seconds=0.1, close_seconds=1, stop_seconds=0.5)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the environment variables with which MLflow's client is configured."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def make_backend(uri: str, run: str = "uid-1", credentials: Mapping[str, str] | None = None) -> MlflowBackend:
    described = RunMetadata(run, "team/bot", PARAMS, {RUN_ID_TAG: run, "finetune.name": "bot"})
    return MlflowBackend(uri, f"about-{run}", described, credentials or {})


def track_attempt(sink: MlflowBackend, steps: range, end: RunEnd, timing: TrackerTiming = PATIENT_TIMING) -> str | None:
    tracker = Tracker(sink, timing)
    tracker.start()
    for step in steps:
        tracker.log(step, {"loss": 1 / step, "tokensPerSecond": 10.0})
        if step % 2 == 0:
            tracker.log(step, {"evalLoss": 2 / step})
    return tracker.close(end)


def test_mlflow_attempts_share_run(mlflow: MlflowServer) -> None:
    assert track_attempt(make_backend(mlflow.uri), range(1, 5), RunEnd(RunEndStatus.STOPPED)) is None
    run = mlflow.get_run("about-uid-1")
    assert run.info.status == "KILLED"
    metrics = {"evalLoss": 0.25, "accuracy": 0.9, "baseAccuracy": 0.4, "steps": 6.0}
    end = RunEnd(RunEndStatus.FINISHED, metrics, {"finetune.resultDigest": "sha256:2"})
    assert track_attempt(make_backend(mlflow.uri), range(3, 7), end) is None

    run = mlflow.get_run("about-uid-1")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "team/bot")
    assert mlflow.get_history(run, "loss") == [(step, 1 / step) for step in range(1, 7)]
    assert [step for step, _ in mlflow.get_history(run, "tokensPerSecond")] == list(range(1, 7))
    assert mlflow.get_history(run, "evalLoss") == [(2, 1.0), (4, 0.5), (6, 0.25), (6, 2 / 6)]
    assert {name: run.data.metrics[name] for name in metrics} == metrics
    assert run.data.params == {name: value[:500] for name, value in PARAMS.items()}
    tags = {RUN_ID_TAG: "uid-1", "finetune.name": "bot", "finetune.resultDigest": "sha256:2"}
    assert tags.items() <= run.data.tags.items()


def test_mlflow_other_job_is_other_run(mlflow: MlflowServer) -> None:
    for run in ("uid-2", "uid-3"):
        described = RunMetadata(run, run, {}, {RUN_ID_TAG: run})
        track_attempt(MlflowBackend(mlflow.uri, "shared", described, {}), range(1, 3), RunEnd(RunEndStatus.FAILED))
    experiment = mlflow.client().get_experiment_by_name("shared").experiment_id
    assert {tracked_run.info.run_name for tracked_run in mlflow.client().search_runs([experiment])} == {
        "uid-2",
        "uid-3",
    }
    assert {tracked_run.info.status for tracked_run in mlflow.client().search_runs([experiment])} == {"FAILED"}


def test_mlflow_thousands_of_steps_are_stored(mlflow: MlflowServer) -> None:
    assert track_attempt(make_backend(mlflow.uri, "uid-4"), range(1, 3000), RunEnd(RunEndStatus.FINISHED)) is None
    assert len(mlflow.get_history(mlflow.get_run("about-uid-4"), "loss")) == 2999


def test_mlflow_unreachable_server_loses_points() -> None:
    lost = track_attempt(make_backend("http://127.0.0.1:9"), range(1, 4), RunEnd(RunEndStatus.FINISHED), SHORT_TIMING)
    assert lost == "tracking: 4 of 4 points were lost: mlflow at http://127.0.0.1:9: Connection refused"


def test_mlflow_hanging_server_loses_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with serve_without_answering() as uri:
        lost = track_attempt(make_backend(uri), range(1, 4), RunEnd(RunEndStatus.FINISHED), PATIENT_TIMING)
    assert lost == f"tracking: 4 of 4 points were lost: mlflow at {uri}: it did not respond in time"


WHO = {
    "a token": ({"MLFLOW_TRACKING_TOKEN": "token-canary"}, "Bearer token-canary"),
    "a name": ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "canary"}, "Basic dTpjYW5hcnk="),
}


@pytest.mark.parametrize(("credentials", "shown"), WHO.values(), ids=WHO)
def test_mlflow_unauthorized_hides_credentials(
    credentials: dict[str, str], shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve_unauthorized() as (uri, authorizations):
        lost = track_attempt(
            make_backend(uri, credentials=credentials), range(1, 4), RunEnd(RunEndStatus.FINISHED), PATIENT_TIMING
        )
    assert set(authorizations) == {shown}
    assert lost is not None
    assert "401" in lost
    assert "canary" not in lost + caplog.text
