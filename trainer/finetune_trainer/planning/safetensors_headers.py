"""Downloads only the headers of the weights of a base model in S3, which takes seconds and is sufficient for a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.inputs.base_model import BaseModelSource, FetchedModel, S3ModelSource
from finetune_trainer.planning.weights import read_header
from finetune_trainer.records.manifest import ModelRecord
from finetune_trainer.storage import MODEL_ERRORS, S3Object, read_range
from finetune_trainer.storage.download import resolve_local_paths


def skip_weights(model: BaseModelSource) -> BaseModelSource:
    """Return a source without weights for a model in S3. Models of a hub or a volume are returned unchanged."""
    return HeadersOnlyModel(model) if isinstance(model, S3ModelSource) else model


@dataclass(frozen=True)
class HeadersOnlyModel:
    """A model whose weight files contain their header only. The rest of each file is sparse."""

    model: S3ModelSource

    @property
    def size(self) -> int:
        """Bytes to download, without the headers."""
        return self._without_weights.size

    def matches(self, record: ModelRecord) -> bool:
        """Return whether the complete model matches the record."""
        return self.model.matches(record)

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download all files except the weights, and the headers of the weights."""
        paths = resolve_local_paths(self.model.objects, target, MODEL_ERRORS)
        fetched = self._without_weights.fetch(target, on_bytes)
        for s3_object, path in zip(self.model.objects, paths, strict=True):
            if _is_weights(s3_object):
                self._write_header(s3_object, path)
        return fetched

    def read_config(self) -> bytes:
        """Download config.json alone."""
        return self.model.read_config()

    @property
    def _without_weights(self) -> S3ModelSource:
        return S3ModelSource(
            self.model.s3, [s3_object for s3_object in self.model.objects if not _is_weights(s3_object)]
        )

    def _write_header(self, s3_object: S3Object, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(
                read_header(
                    path.name, lambda start, end: read_range(self.model.s3, s3_object, (start, end), MODEL_ERRORS)
                )
            )
            file.truncate(s3_object.size)


def _is_weights(s3_object: S3Object) -> bool:
    return s3_object.name.endswith(".safetensors")
