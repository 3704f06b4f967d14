"""A training that stops at a step ends only when the checkpoint of that step is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trainer.checkpoint_store import list_steps, prefix, store, write_trainer_state
from tests.support.trainer.s3_server import S3Server
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.checkpoints.manager import CheckpointFolder, CheckpointUploader
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry.progress import ProgressReporter

__all__ = ["prefix", "store"]
pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


def test_uploader_reports_newest_checkpoint_that_is_not_stored(
    s3: S3Server, prefix: str, store: CheckpointStore, tmp_path: Path
) -> None:
    is_lost = True

    def check_lock() -> None:
        if is_lost:
            raise TrainerError(Reason.OUTPUT_BUSY, "taken over")

    uploader = CheckpointUploader(store, ProgressReporter(), check_lock)
    uploader.submit(CheckpointFolder(write_trainer_state(tmp_path, 5), 5))
    with pytest.raises(TrainerError, match="taken over"):
        uploader.check_stored()
    is_lost = False
    uploader.submit(CheckpointFolder(write_trainer_state(tmp_path, 6), 6))
    uploader.check_stored()
    assert list_steps(s3, prefix) == ["step-6"]
