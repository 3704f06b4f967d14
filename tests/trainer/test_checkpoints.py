"""Checkpoints in the store: which one a run goes on from, and what becomes of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.trainer.checkpoint_stores import NAMES, ORIGIN, open_store, prefix, save, saved, steps_in, store
from tests.trainer.tiny_model import TRAINING_SECONDS

from finetune_trainer.checkpoints.store import CheckpointProvenance, CheckpointStore
from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from tests.trainer.s3_server import S3Server

__all__ = ["prefix", "store"]
pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(TRAINING_SECONDS)]


def test_a_checkpoint_comes_back_as_it_was_saved(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, tmp_path, 5)
    where = prefix.removeprefix("s3://results/") + ".checkpoints/config/step-5/"
    assert s3.keys(prefix) == sorted(where + name for name in [*NAMES, "checkpoint.json"])
    restored = store.fetch_newest(tmp_path / "restored")
    assert restored
    assert restored.step == 5
    assert {path.name: path.read_bytes() for path in restored.folder.iterdir()} == {
        name: (tmp_path / "saved-5" / name).read_bytes() for name in NAMES
    }


def test_the_newest_are_kept_and_none_after_success(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, tmp_path, 5, 10, 15, 100)
    assert steps_in(s3, prefix) == ["step-100", "step-15"]
    store.clear()
    assert s3.keys(prefix) == []


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        (replace(ORIGIN, data_digest="sha256:other"), "the data has changed since"),
        (replace(ORIGIN, model_revision="other"), "the base model has changed since"),
    ],
)
def test_one_of_other_inputs_is_not_used(
    s3: S3Server,
    prefix: str,
    store: CheckpointStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    origin: CheckpointProvenance,
    why: str,
) -> None:
    save(store, tmp_path, 5)
    assert open_store(s3, prefix, origin).fetch_newest(tmp_path / "restored") is None
    assert why in caplog.text
    assert "training starts afresh" in caplog.text


def test_one_of_another_config_is_left_alone(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    save(store, tmp_path, 5)
    other = open_store(s3, prefix, replace(ORIGIN, config_digest="sha256:other"))
    assert other.fetch_newest(tmp_path / "restored") is None
    assert "1 other configs have some here, which are left alone: config" in caplog.text
    other.clear()
    assert steps_in(s3, prefix) == ["step-5"]


def test_other_versions_are_warned_of(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, tmp_path, 5)
    assert open_store(s3, prefix, replace(ORIGIN, versions={"torch": "2"})).fetch_newest(tmp_path / "restored")
    assert "made with torch 1, this is 2" in caplog.text


def test_nothing_is_written_once_the_output_is_somebody_elses(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    def lost() -> None:
        raise TrainerError(Reason.OUTPUT_BUSY, "taken over")

    with pytest.raises(TrainerError):
        open_store(s3, prefix).save(saved(tmp_path, 5), 5, lost)
    assert s3.keys(prefix) == []
