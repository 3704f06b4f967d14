"""`manifest.json`: what was made, from what, by what. Its presence is what makes an adapter a result."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ConfigDict, Field

from finetune_trainer.contract import DatasetReport, Model, Result
from finetune_trainer.recipe import FIRST_RECIPE

if TYPE_CHECKING:
    from finetune_trainer.storage import InputFile, S3Object

MANIFEST_NAME = "manifest.json"
MERGED_PREFIX = "merged/"
"""The folder of the merged model, below the adapter's."""
REPORT_NAME = "report.html"
_RECORDED_PACKAGES = ("finetune-operator", "torch", "transformers", "trl", "peft", "unsloth", "datasets", "tokenizers")


class _LenientModel(Model):
    """Read leniently: a newer trainer may have written more."""

    model_config = ConfigDict(extra="ignore")


class FileRecord(_LenientModel):
    """A published file."""

    path: str
    size: int
    sha256: str

    @classmethod
    def from_path(cls, path: Path, name: str) -> Self:
        """A file here, under the name that it gets there."""
        with path.open("rb") as file:
            return cls(path=name, size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class InputRecord(_LenientModel):
    """An object that went in."""

    uri: str
    etag: str
    size: int
    sha256: str = ""
    """Known once it has been read."""

    @classmethod
    def from_listing(cls, s3_object: S3Object) -> Self:
        """As a listing shows it."""
        return cls(uri=s3_object.uri, etag=s3_object.etag, size=s3_object.size)

    @classmethod
    def from_file(cls, file: InputFile) -> Self:
        """As it was read."""
        return cls(uri=file.uri, etag=file.etag, size=file.size, sha256=file.sha256)

    def without_sha256(self) -> Self:
        """Without what a listing cannot show."""
        return self.model_copy(update={"sha256": ""})


class ModelRecord(_LenientModel):
    """The base model."""

    uri: str
    revision: str
    files: list[InputRecord] = Field(default=[])


class AdapterManifest(_LenientModel):
    """The whole record."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["AdapterManifest"] = "AdapterManifest"
    created_at: str
    config_digest: str
    config: dict[str, Any]
    """As run."""
    recipe: int = FIRST_RECIPE
    """How the config was trained; see `finetune_trainer.recipe`."""
    model: ModelRecord
    inputs: list[InputRecord]
    backend: str
    dataset: DatasetReport
    metrics: dict[str, float]
    versions: dict[str, str]
    files: list[FileRecord]

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return (self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()

    @property
    def has_merged_model(self) -> bool:
        """Whether the merged model was published with the adapter, as trainers before 0.1.0 did."""
        return any(file.path.startswith(MERGED_PREFIX) for file in self.files)

    def to_result(self, adapter_uri: str, content: bytes) -> Result:
        """What the operator hears of it; `content` is the manifest as stored."""
        has_report = REPORT_NAME in {file.path for file in self.files}
        return Result(
            adapter_uri=adapter_uri,
            report_uri=f"{adapter_uri}/{REPORT_NAME}" if has_report else None,
            merged_uri=f"{adapter_uri}/{MERGED_PREFIX.rstrip('/')}" if self.has_merged_model else None,
            digest=compute_digest(content),
            model_revision=self.model.revision,
            metrics=self.metrics,
        )


class MergedLosses(_LenientModel):
    """Mean loss per token, in nats, of one kind of text."""

    base: float
    adapter: float
    """Of the base model with the adapter."""
    merged: float
    """Of the merged model as its files hold it."""


class MergedManifest(_LenientModel):
    """`merged/manifest.json`. Its presence makes the merged model whole; paths are relative to its folder."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["MergedModelManifest"] = "MergedModelManifest"
    created_at: str
    adapter_digest: str
    """`sha256:…` of the adapter's `manifest.json`."""
    precision: str
    """The number format of the weights."""
    losses: dict[str, MergedLosses]
    """By kind of text."""
    files: list[FileRecord]

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return (self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()


def compute_digest(content: bytes) -> str:
    """`sha256:…` of a manifest as it is stored."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def get_installed_versions() -> dict[str, str]:
    """Of the packages that shape the result."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # Unsloth is optional
    return versions
