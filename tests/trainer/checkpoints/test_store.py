"""Checkpoints in the store: which one a run resumes from, and when others are removed."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.checkpoint_store import (
    CHECKPOINT_FILES,
    ORIGIN,
    list_steps,
    open_store,
    prefix,
    save_checkpoints,
    store,
    write_trainer_state,
)
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.checkpoints.store import CheckpointProvenance, CheckpointStore
from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix", "store"]
pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


def test_checkpoint_store_restores_saved_files(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path
) -> None:
    save_checkpoints(store, tmp_path, 5)
    folder = prefix.removeprefix("s3://results/") + ".checkpoints/config/step-5/"
    assert s3.list_keys(prefix) == sorted(folder + name for name in [*CHECKPOINT_FILES, "checkpoint.json"])
    restored = store.fetch_newest(tmp_path / "restored")
    assert restored
    assert restored.step == 5
    assert {path.name: path.read_bytes() for path in restored.folder.iterdir()} == {
        name: (tmp_path / "saved-5" / name).read_bytes() for name in CHECKPOINT_FILES
    }


def test_checkpoint_store_keeps_newest_until_cleared(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path
) -> None:
    save_checkpoints(store, tmp_path, 5, 10, 15, 100)
    assert list_steps(s3, prefix) == ["step-100", "step-15"]
    store.clear()
    assert s3.list_keys(prefix) == []


@pytest.mark.parametrize(
    ("origin", "expected_message"),
    [
        (replace(ORIGIN, data_digest="sha256:other"), "the data has changed since"),
        (replace(ORIGIN, model_revision="other"), "the base model has changed since"),
        (
            replace(ORIGIN, template_date=date(2026, 2, 1)),
            "its rows have the date None, those of this run 2026-02-01",
        ),
    ],
)
def test_checkpoint_store_changed_inputs_start_fresh(
    s3: S3Server,
    prefix: str,
    store: CheckpointStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    origin: CheckpointProvenance,
    expected_message: str,
) -> None:
    save_checkpoints(store, tmp_path, 5)
    assert open_store(s3, prefix, origin).fetch_newest(tmp_path / "restored") is None
    assert expected_message in caplog.text
    assert "training starts from the beginning" in caplog.text


def test_checkpoint_store_template_date_is_that_of_the_newest(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    dated = open_store(s3, prefix, replace(ORIGIN, template_date=date(2026, 2, 1)))
    assert dated.find_template_date() is None
    save_checkpoints(dated, tmp_path, 5)
    store_of_next_attempt = open_store(s3, prefix, replace(ORIGIN, data_digest="", model_revision=""))
    assert store_of_next_attempt.find_template_date() == date(2026, 2, 1)
    s3.put(f"{prefix}.checkpoints/config/step-10/checkpoint.json", b"damaged")
    assert store_of_next_attempt.find_template_date() == date(2026, 2, 1)


def test_checkpoint_store_other_config_is_untouched(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    save_checkpoints(store, tmp_path, 5)
    other = open_store(s3, prefix, replace(ORIGIN, config_digest="sha256:other"))
    assert other.fetch_newest(tmp_path / "restored") is None
    assert "ignoring checkpoints of 1 other configurations: config" in caplog.text
    other.clear()
    assert list_steps(s3, prefix) == ["step-5"]


def test_checkpoint_store_other_versions_are_logged(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoints(store, tmp_path, 5)
    assert open_store(s3, prefix, replace(ORIGIN, versions={"torch": "2"})).fetch_newest(tmp_path / "restored")
    assert "saved with torch 1, resumed with 2" in caplog.text


def test_checkpoint_store_lost_output_lock_writes_nothing(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    def lost() -> None:
        raise TrainerError(Reason.OUTPUT_BUSY, "taken over")

    with pytest.raises(TrainerError):
        open_store(s3, prefix).save(write_trainer_state(tmp_path, 5), 5, lost)
    assert s3.list_keys(prefix) == []
