"""The tiny model, and a way to train it by either backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.tiny_model import build
from tests.trainer.training.forks import Unsloth, start_unsloth
from tests.trainer.training.trainings import Asked, Recorder, Run, Trained, train

SHAPE = {"batchSize": 4, "gradientAccumulation": 1, "gradientCheckpointing": False, "maxSteps": 4}
OTHERS = {field.name for field in fields(Asked)} - {"training"}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def unsloth(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unsloth]:
    with start_unsloth(model_dir, tmp_path_factory.mktemp("unsloth")) as started:
        yield started


@pytest.fixture
def run(model_dir: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Trains, each time in a folder of its own; what is named as a field of `Asked` goes there, the rest is `training`.

    Rows in tokens are eight, four of them a step, unless something else is said.
    """
    numbers = count()

    def run(base: Path = model_dir, progress: Recorder | None = None, **settings: Any) -> Trained:
        folder = tmp_path / f"run-{next(numbers)}"
        folder.mkdir()
        how = {name: settings.pop(name) for name in OTHERS & settings.keys()}
        asked = Asked(settings if "rows" in how else SHAPE | settings, **how)
        if settings.get("backend") == "unsloth":
            started: Unsloth = request.getfixturevalue("unsloth")
            return started.train(asked, folder)
        return train(asked, base, folder, progress)

    return run
