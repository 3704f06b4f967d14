"""The sample applications in `manifests/samples/`: their names, and uploading their data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

SAMPLES_DIR = Path(__file__).parents[3] / "manifests" / "samples"
APPLICATIONS = ("chatbot", "classification", "summarization", "translation", "generation")
SAMPLE_NAMES = (*APPLICATIONS, "extraction", "arithmetic", "labels")
MODEL_URI = "s3://models/smollm2-135m-instruct/"
PLACEHOLDER_ENDPOINT = "http://s3.example:9000"
"""Placeholder in the samples for the address of the store."""


def load_manifest(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((SAMPLES_DIR / f"{name}.yaml").read_text()))


def list_data_objects(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the URI and the local file of each data object of a sample."""
    for file in sorted((SAMPLES_DIR / "data").glob(f"{name}-*.jsonl")):
        yield f"s3://datasets/{name}/{file.name.removeprefix(f'{name}-')}", file


def upload_data(s3: S3Server) -> None:
    """Upload the data of all samples, and create a bucket for the results."""
    for bucket in ("datasets", "adapters"):
        s3.client.create_bucket(Bucket=bucket)
    for name in SAMPLE_NAMES:
        for uri, file in list_data_objects(name):
            s3.put(uri, file.read_bytes())
