"""A result that is at the output already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.adapters import FILES
from finetune_trainer.recipe import RECIPE
from finetune_trainer.records.manifest import MANIFEST_NAME, AdapterManifest, digest_of
from finetune_trainer.storage import OUTPUT, S3, Location, download, find


@dataclass(frozen=True)
class Existing:
    """A result that lies at the output."""

    manifest: AdapterManifest
    content: bytes
    merged_uri: str | None = None
    """Where its merged model is, if that is whole."""

    @classmethod
    def made(cls, manifest: AdapterManifest) -> Existing:
        """One that is about to."""
        return cls(manifest, manifest.to_bytes())

    @property
    def digest(self) -> str:
        """Of the manifest as it is stored."""
        return digest_of(self.content)

    def outcome(self, output: str) -> Outcome:
        """It is this run's own: say what was published, as if this attempt had done it."""
        result = self.manifest.result(output, self.content)
        return Outcome(
            reason=Reason.ALREADY_COMPLETE,
            message=f"the result at {output} was published {self.manifest.created_at} by the same config and inputs"
            + self._older_recipe(),
            backend=self.manifest.backend,
            dataset=self.manifest.dataset,
            result=result.model_copy(update={"merged_uri": self.merged_uri}),
        )

    def _older_recipe(self) -> str:
        if self.manifest.recipe == RECIPE:
            return ""
        return f", trained by recipe {self.manifest.recipe}; this trainer uses recipe {RECIPE} for new results"

    def fetch_adapter(self, s3: S3, prefix: Location, target: Path) -> Path:
        """Download the adapter's own files. Raises `STORAGE_CORRUPT` if they are not what the manifest lists."""
        objects = [find(s3, prefix.below(name), OUTPUT)[0] for name in FILES]
        listed = {file.path: file.sha256 for file in self.manifest.files}
        for file in download(s3, objects, target, OUTPUT, lambda _: None):
            if listed.get(file.path.name) != file.sha256:
                message = f"{file.uri} is not what {MANIFEST_NAME} lists: it was changed after it was published"
                raise TrainerError(Reason.STORAGE_CORRUPT, message)
        return target
