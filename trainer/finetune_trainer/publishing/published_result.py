"""A result that an earlier attempt or run has published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_FILES
from finetune_trainer.recipe import RECIPE
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    MERGED_PREFIX,
    AdapterManifest,
    MergedManifest,
    compute_digest,
)
from finetune_trainer.storage import OUTPUT_ERRORS, S3, Location, download_objects, find_objects, read_object
from finetune_trainer.telemetry.run_log import LOG_NAME


@dataclass(frozen=True)
class PublishedResult:
    """The manifest of a published adapter, and the URI of its merged model."""

    manifest: AdapterManifest
    content: bytes
    merged_uri: str | None = None
    """URI of the merged model, if that is complete."""
    gguf_uri: str | None = None
    """URI of the GGUF files that the config requests, if they are complete."""

    @classmethod
    def from_manifest(cls, manifest: AdapterManifest) -> PublishedResult:
        """Build the result of a manifest that is about to be published."""
        return cls(manifest, manifest.to_bytes())

    @property
    def digest(self) -> str:
        """Digest of the manifest as it is stored."""
        return compute_digest(self.content)

    def to_outcome(self, output_uri: str) -> Outcome:
        """Build the outcome `ALREADY_COMPLETE` with the published result."""
        result = self.manifest.to_result(output_uri, self.content)
        return Outcome(
            reason=Reason.ALREADY_COMPLETE,
            message=f"the result at {output_uri} was published {self.manifest.created_at} with the same config and "
            "inputs" + self._describe_older_recipe(),
            backend=self.manifest.backend,
            dataset=self.manifest.dataset,
            result=result.model_copy(update={"merged_uri": self.merged_uri, "gguf_uri": self.gguf_uri}),
            log_uri=self.get_log_uri(output_uri),
        )

    def get_log_uri(self, output_uri: str) -> str | None:
        """Return the URI of the log of the run that published the result, if it is published too."""
        return f"{output_uri}/{LOG_NAME}" if any(file.path == LOG_NAME for file in self.manifest.files) else None

    def _describe_older_recipe(self) -> str:
        if self.manifest.recipe == RECIPE:
            return ""
        return f", trained with recipe {self.manifest.recipe}; this trainer uses recipe {RECIPE} for new results"

    def download_adapter(self, s3: S3, prefix: Location, target: Path) -> Path:
        """Download the files of the adapter. Raises `STORAGE_CORRUPT` if they do not match the manifest."""
        return self._download(s3, prefix, ADAPTER_FILES, target)

    def download_result(self, s3: S3, prefix: Location, target: Path) -> Path:
        """Download all files of the adapter's folder, as `download_adapter`."""
        return self._download(s3, prefix, [file.path for file in self.manifest.files if "/" not in file.path], target)

    def _download(self, s3: S3, prefix: Location, names: Sequence[str], target: Path) -> Path:
        objects = [find_objects(s3, prefix.child(name), OUTPUT_ERRORS)[0] for name in names]
        changed = self.manifest.find_changed_file(download_objects(s3, objects, target, OUTPUT_ERRORS, lambda _: None))
        if changed:
            message = f"{changed.uri} does not match {MANIFEST_NAME}: it was changed after it was published"
            raise TrainerError(Reason.STORAGE_CORRUPT, message)
        return target


def download_merged(s3: S3, prefix: Location, target: Path) -> Path:
    """Download the merged model of the result at a prefix. Raises `MODEL_NOT_FOUND` if there is none, and
    `STORAGE_CORRUPT` if its files do not match its manifest."""
    folder = prefix.child(MERGED_PREFIX)
    content = read_object(s3, folder.child(MANIFEST_NAME))
    if content is None:
        raise TrainerError(Reason.MODEL_NOT_FOUND, f"{folder} has no complete merged model")
    sha256_by_path = {file.path: file.sha256 for file in MergedManifest.model_validate_json(content).files}
    objects = [find_objects(s3, folder.child(name), OUTPUT_ERRORS)[0] for name in sha256_by_path]
    for file in download_objects(s3, objects, target, OUTPUT_ERRORS, lambda _: None):
        if sha256_by_path[file.path.name] != file.sha256:
            message = f"{file.uri} does not match {MANIFEST_NAME}: it was changed after it was published"
            raise TrainerError(Reason.STORAGE_CORRUPT, message)
    return target


def read_manifest(s3: S3, adapter_uri: str, digest: str) -> bytes:
    """Return the manifest of the result at an S3 prefix.

    Raises `MODEL_NOT_FOUND` if there is none, and `STORAGE_CORRUPT` if it has another digest.
    """
    location = Location.parse_folder(adapter_uri).child(MANIFEST_NAME)
    content = read_object(s3, location)
    if content is None:
        message = f"{location} does not exist: the result was never complete, or it was deleted"
        raise TrainerError(Reason.MODEL_NOT_FOUND, message)
    found_digest = compute_digest(content)
    if found_digest != digest:
        message = f"{location} has the digest {found_digest}, expected {digest}: it was changed or replaced"
        raise TrainerError(Reason.STORAGE_CORRUPT, message)
    return content
