"""Fixtures: the tiny model, and training it with either backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.fork_server import ForkServer, start_fork_server
from tests.support.trainer.tiny_model import build
from tests.support.trainer.tiny_training import RecordingReporter, RunTraining, TrainingOutcome, TrainingRequest, train

DEFAULT_TRAINING = {"batchSize": 4, "gradientAccumulation": 1, "gradientCheckpointing": False, "maxSteps": 4}
REQUEST_FIELDS = {field.name for field in fields(TrainingRequest)} - {"training"}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def unsloth_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A server of trainers and trainings with Unsloth."""
    with start_fork_server("unsloth", tmp_path_factory.mktemp("unsloth")) as server:
        yield server


@pytest.fixture
def run(model_dir: Path, tmp_path: Path, request: pytest.FixtureRequest) -> RunTraining:
    """Return a function that trains in a new folder at each call.

    Keyword arguments that are fields of `TrainingRequest` are passed to it; all others are fields of `training`. By
    default there are eight tokenized rows, of which a step trains four.
    """
    numbers = count()

    def run(base: Path = model_dir, progress: RecordingReporter | None = None, **settings: Any) -> TrainingOutcome:
        folder = tmp_path / f"run-{next(numbers)}"
        folder.mkdir()
        request_fields = {name: settings.pop(name) for name in REQUEST_FIELDS & settings.keys()}
        training_request = TrainingRequest(
            settings if "rows" in request_fields else DEFAULT_TRAINING | settings, **request_fields
        )
        if settings.get("backend") == "unsloth":
            server: ForkServer = request.getfixturevalue("unsloth_forks")
            return server.train(training_request, model_dir, folder)
        return train(training_request, base, folder, progress)

    return run
