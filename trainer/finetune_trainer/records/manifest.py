"""`manifest.json`: the files of a result, its inputs and the software that produced it. An adapter with a manifest is
complete."""

from __future__ import annotations

import hashlib
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from finetune_trainer.contract import BaselineComparison, DatasetReport, Model, Result, Servable, Verdicts
from finetune_trainer.recipe import FIRST_RECIPE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_trainer.storage import InputFile, S3Object

MANIFEST_NAME = "manifest.json"
MERGED_PREFIX = "merged/"
"""Folder of the merged model, relative to the adapter's."""
REPORT_NAME = "report.html"
ROW_SCORES_NAME = "evaluation.jsonl"
"""Name of the file with one line per validation row: a record of `RowScores`."""
UPLOAD_RECORD_NAME = ".upload.json"
"""Name of the record of files whose upload has begun. It is removed once a manifest lists them."""
_RECORDED_PACKAGES = ("finetune-operator", "torch", "transformers", "trl", "peft", "unsloth", "datasets", "tokenizers")


class _LenientModel(Model):
    """Base class that ignores unknown fields, because a newer trainer may have written the record."""

    model_config = ConfigDict(extra="ignore")


class FileRecord(_LenientModel):
    """A published file: its path, its size in bytes and its SHA-256 digest."""

    path: str
    size: int
    sha256: str

    @classmethod
    def from_path(cls, path: Path, name: str) -> Self:
        """Return the record of a local file that is published as `name`."""
        with path.open("rb") as file:
            return cls(path=name, size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class InputRecord(_LenientModel):
    """An input file: an object in S3, a file of a dataset on the hub, or data on a volume."""

    uri: str
    etag: str
    """ETag of the object, digest of the file on the hub, or SHA-256 digest of the file on a volume."""
    size: int
    sha256: str = ""
    """SHA-256 digest of the content. It is empty until the object has been read."""

    @classmethod
    def from_listing(cls, s3_object: S3Object) -> Self:
        """Return the record of an object as found in a listing."""
        return cls(uri=s3_object.uri, etag=s3_object.etag, size=s3_object.size)

    @classmethod
    def from_file(cls, file: InputFile) -> Self:
        """Return the record of an object that has been read."""
        return cls(uri=file.uri, etag=file.etag, size=file.size, sha256=file.sha256)

    def without_sha256(self) -> Self:
        """Return the record without the fields that a listing does not contain."""
        return self.model_copy(update={"sha256": ""})


class ModelRecord(_LenientModel):
    """The base model: its URI, its revision and its files."""

    uri: str
    revision: str
    files: list[InputRecord] = Field(default=[])
    license_fields: dict[str, str] = Field(default={})
    """License of the card of a model on the hub: `license`, and for another one than the hub's also `license_name` and
    `license_link`."""


class AdapterManifest(_LenientModel):
    """Content of the adapter's `manifest.json`."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["AdapterManifest"] = "AdapterManifest"
    created_at: str
    job: str = ""
    """Name of the FineTuneJob, as `namespace/name` or, for a run without a cluster, as `name`."""
    config_digest: str
    config: dict[str, Any]
    """The `TrainerConfig` that the run used."""
    recipe: int = FIRST_RECIPE
    """Version of the training procedure; see `finetune_trainer.recipe`."""
    model: ModelRecord
    inputs: list[InputRecord]
    backend: str
    template_date: date | None = None
    """Date that the chat template wrote as the current one in rows and prompts, or None if it writes none."""
    dataset: DatasetReport
    validation_digest: str | None = None
    """`sha256:…` over the validation rows (`data.row_digests`), on which neither this training nor the trainings that
    it continues have trained. None: there are no such rows, or the result is older than this field."""
    metrics: dict[str, float]
    verdicts: Verdicts | None = None
    baselines: list[BaselineComparison] | None = None
    """Comparison with each of `evaluation.baselines`."""
    servable: Servable | None = None
    """Which inference servers load the adapter."""
    versions: dict[str, str]
    files: list[FileRecord]

    @field_validator("verdicts", "baselines", "servable", mode="wrap")
    @classmethod
    def _ignore_newer_record(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        """Return None for a record that a newer trainer has written in a form that this one cannot read: the result
        stays readable, and nothing is decided by it."""
        try:
            return validate(value)
        except ValidationError:
            return None

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: JSON in UTF-8."""
        return (self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()

    @property
    def has_merged_model(self) -> bool:
        """Whether the manifest includes the merged model, as trainers before 0.1.0 published it."""
        return any(file.path.startswith(MERGED_PREFIX) for file in self.files)

    def find_file(self, path: str) -> FileRecord | None:
        """Return the published file with this path, if there is one."""
        return next((file for file in self.files if file.path == path), None)

    def find_changed_file(self, files: Iterable[InputFile]) -> InputFile | None:
        """Return the first of the downloaded files whose content is not that of the file that was published."""
        sha256_by_path = {file.path: file.sha256 for file in self.files}
        return next((file for file in files if sha256_by_path.get(file.path.name) != file.sha256), None)

    def to_result(self, adapter_uri: str, content: bytes) -> Result:
        """Return the result that is reported to the operator. `content` is the manifest as stored."""
        has_report = REPORT_NAME in {file.path for file in self.files}
        return Result(
            adapter_uri=adapter_uri,
            report_uri=f"{adapter_uri}/{REPORT_NAME}" if has_report else None,
            merged_uri=f"{adapter_uri}/{MERGED_PREFIX.rstrip('/')}" if self.has_merged_model else None,
            digest=compute_digest(content),
            model_revision=self.model.revision,
            metrics=self.metrics,
            verdicts=self.verdicts,
            baselines=self.baselines,
            servable=self.servable,
        )


class PublishedFiles(_LenientModel):
    """The files of a manifest. It can be read whatever else the trainer that wrote it has recorded."""

    files: list[FileRecord]


class MergedLosses(_LenientModel):
    """Mean loss per token of one kind of text, in nats, for the base model, the base model with the adapter, and the
    merged model."""

    base: float
    adapter: float
    """Loss of the base model with the adapter."""
    merged: float
    """Loss of the merged model as loaded from its files."""


class MergedManifest(_LenientModel):
    """Content of `merged/manifest.json`. A merged model with a manifest is complete. Paths are relative to its
    folder."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["MergedModelManifest"] = "MergedModelManifest"
    created_at: str
    adapter_digest: str
    """`sha256:…` of the adapter's `manifest.json`."""
    precision: str
    """Number format of the weights."""
    losses: dict[str, MergedLosses]
    """Losses by kind of text."""
    files: list[FileRecord]

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: JSON in UTF-8."""
        return (self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()


def find_changed_path(folder: Path, files: Iterable[FileRecord]) -> str | None:
    """Return the first file that is missing in a folder or that has another content than was published."""
    for file in files:
        path = folder / file.path
        if not path.is_file() or FileRecord.from_path(path, file.path) != file:
            return file.path
    return None


def compute_digest(content: bytes) -> str:
    """Return `sha256:…` of a manifest as it is stored."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def get_installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages that affect the result."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # Unsloth is optional
    return versions
