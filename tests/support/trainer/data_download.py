"""Downloading data without reporting progress."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.storage import DATA_ERRORS, S3, InputFile, download_objects
from finetune_trainer.storage.listing import S3Object


def download_data(s3: S3, objects: list[S3Object], target: Path) -> list[InputFile]:
    return download_objects(s3, objects, target, DATA_ERRORS, lambda _: None)
