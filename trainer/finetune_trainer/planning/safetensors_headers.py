"""Downloads only the headers of the weights of a base model in S3, which takes seconds and is sufficient for a plan."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.inputs.base_model import S3ModelSource
from finetune_trainer.planning.weights import read_header
from finetune_trainer.storage import MODEL_ERRORS, S3Object, read_range


def fetch_headers(model: S3ModelSource, folder: Path) -> None:
    """Write the header of each safetensors file to the sparse file that is in `folder` in its place."""
    for s3_object in model.weights:
        if s3_object.name.endswith(".safetensors"):
            _write_header(model, s3_object, folder / s3_object.name)


def _write_header(model: S3ModelSource, s3_object: S3Object, path: Path) -> None:
    header = read_header(path.name, lambda start, end: read_range(model.s3, s3_object, (start, end), MODEL_ERRORS))
    with path.open("r+b") as file:
        file.write(header)
