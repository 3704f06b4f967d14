"""A result that is at the output already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.base_model import ADAPTER_FILES
from finetune_trainer.recipe import RECIPE
from finetune_trainer.records.manifest import MANIFEST_NAME, AdapterManifest, compute_digest
from finetune_trainer.storage import OUTPUT_ERRORS, S3, Location, download_objects, find_objects


@dataclass(frozen=True)
class PublishedResult:
    """A result that lies at the output."""

    manifest: AdapterManifest
    content: bytes
    merged_uri: str | None = None
    """Where its merged model is, if that is whole."""

    @classmethod
    def from_manifest(cls, manifest: AdapterManifest) -> PublishedResult:
        """One that is about to."""
        return cls(manifest, manifest.to_bytes())

    @property
    def digest(self) -> str:
        """Of the manifest as it is stored."""
        return compute_digest(self.content)

    def to_outcome(self, output_uri: str) -> Outcome:
        """It is this run's own: say what was published, as if this attempt had done it."""
        result = self.manifest.to_result(output_uri, self.content)
        return Outcome(
            reason=Reason.ALREADY_COMPLETE,
            message=f"the result at {output_uri} was published {self.manifest.created_at} by the same config and inputs"
            + self._describe_older_recipe(),
            backend=self.manifest.backend,
            dataset=self.manifest.dataset,
            result=result.model_copy(update={"merged_uri": self.merged_uri}),
        )

    def _describe_older_recipe(self) -> str:
        if self.manifest.recipe == RECIPE:
            return ""
        return f", trained by recipe {self.manifest.recipe}; this trainer uses recipe {RECIPE} for new results"

    def download_adapter(self, s3: S3, prefix: Location, target: Path) -> Path:
        """Download the adapter's own files. Raises `STORAGE_CORRUPT` if they are not what the manifest lists."""
        objects = [find_objects(s3, prefix.child(name), OUTPUT_ERRORS)[0] for name in ADAPTER_FILES]
        sha256_by_path = {file.path: file.sha256 for file in self.manifest.files}
        for file in download_objects(s3, objects, target, OUTPUT_ERRORS, lambda _: None):
            if sha256_by_path.get(file.path.name) != file.sha256:
                message = f"{file.uri} is not what {MANIFEST_NAME} lists: it was changed after it was published"
                raise TrainerError(Reason.STORAGE_CORRUPT, message)
        return target
