"""A base model in S3 of whose weights only the headers are fetched: seconds instead of minutes, enough to plan with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.inputs.base_model import BaseModel, FetchedModel, S3Model
from finetune_trainer.planning.weights import read_header
from finetune_trainer.records.manifest import ModelRecord
from finetune_trainer.storage import MODEL, S3Object, read_range
from finetune_trainer.storage.download import places


def of(model: BaseModel) -> BaseModel:
    """The same model without its weights where it lies in S3; from a hub or a volume it is read as ever."""
    return HeadersOnly(model) if isinstance(model, S3Model) else model


@dataclass(frozen=True)
class HeadersOnly:
    """Looks like the whole model on disk; behind the headers of its weights are holes."""

    model: S3Model

    @property
    def size(self) -> int:
        """What is really fetched, but for the headers."""
        return self._rest.size

    def matches(self, record: ModelRecord) -> bool:
        """As the whole model does."""
        return self.model.matches(record)

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download all but the weights, and the headers of those."""
        paths = places(self.model.objects, target, MODEL)
        fetched = self._rest.fetch(target, on_bytes)
        for each, path in zip(self.model.objects, paths, strict=True):
            if _is_weights(each):
                self._write(each, path)
        return fetched

    @property
    def _rest(self) -> S3Model:
        return S3Model(self.model.s3, [each for each in self.model.objects if not _is_weights(each)])

    def _write(self, source: S3Object, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(
                read_header(path.name, lambda start, end: read_range(self.model.s3, source, (start, end), MODEL))
            )
            file.truncate(source.size)


def _is_weights(source: S3Object) -> bool:
    return source.name.endswith(".safetensors")
