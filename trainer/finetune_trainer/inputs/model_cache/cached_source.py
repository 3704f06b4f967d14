"""A base model that is read from the cache in place, or from its source if the cache cannot be used."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_trainer.contract import MODEL_CACHE_DIR_ENV, CacheResult
from finetune_trainer.inputs.base_model import (
    CONFIG_NAME,
    BaseModelSource,
    CacheableModelSource,
    FetchedModel,
    HubModelSource,
    S3ModelSource,
    lists_all_weights,
)
from finetune_trainer.inputs.model_cache.entries import CacheDamagedError, CacheEntry
from finetune_trainer.inputs.model_cache.records import FillReport, VerifiedFile, read_report
from finetune_trainer.inputs.resolve import ResolvedInputs
from finetune_trainer.records.manifest import ModelRecord
from finetune_trainer.storage import check_disk_space

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedModelSource:
    """A base model with an entry in the cache."""

    source: CacheableModelSource
    entry: CacheEntry
    report: FillReport | None = None
    """What the init container of this pod has reported, if there was one."""

    @property
    def size(self) -> int:
        """Bytes to download: none if the entry is filled."""
        return 0 if self.entry.exists() else self.source.size

    @property
    def settings_size(self) -> int:
        """Bytes to download without the weights: none if the entry is filled."""
        return 0 if self.entry.exists() else self.source.settings_size

    def matches(self, record: ModelRecord) -> bool:
        """Compare what the source lists."""
        return self.source.matches(record)

    def fetch_settings(self, target: Path, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Return the complete model in the cache if its files are those of the source. Otherwise, download."""
        files = self._verify_entry()
        if files is None:
            check_disk_space(target.parent, {"base model without weights": self.source.settings_size})
            fetched = self.source.fetch_settings(target, on_bytes)
            return replace(fetched, cache_result=CacheResult.MISS)
        digests = {name: file.sha256 for name, file in files.items()}
        log.info("model cache: the base model is read from %s", self.entry.folder)
        return replace(self.source.describe_copy(self.entry.model_dir, digests), cache_result=self._get_usable_result())

    def fetch_weights(self, settings: FetchedModel, on_bytes: Callable[[int], None]) -> FetchedModel:
        """Download the weights, unless the model is that of the cache."""
        if settings.cache_result is not CacheResult.MISS:
            return settings
        return replace(self.source.fetch_weights(settings, on_bytes), cache_result=CacheResult.MISS)

    def read_config(self) -> bytes:
        """Read config.json from the source."""
        return self.source.read_config()

    def _verify_entry(self) -> Mapping[str, VerifiedFile] | None:
        """Return the verified files of the entry, or None if they cannot be used. Raises `TrainerError` if this run may
        not read the model from its source: a list needs fewer permissions."""
        if not self.entry.exists():
            log.info("model cache: not used: %s", self.report.message if self.report else "it has no such model")
            return None
        try:
            files = self.entry.verify(self.report.files if self.report else None)
            self._compare_config()
        except (CacheDamagedError, OSError) as error:
            log.warning("model cache: not used: %s: %s", self.entry.folder, error)
            return None
        return files

    def _compare_config(self) -> None:
        if self.source.read_config() != (self.entry.model_dir / CONFIG_NAME).read_bytes():
            raise CacheDamagedError(f"{CONFIG_NAME} differs from that of the source")

    def _get_usable_result(self) -> CacheResult:
        is_filled = self.report and (self.report.entry, self.report.result) == (self.entry.digest, CacheResult.FILLED)
        return CacheResult.FILLED if is_filled else CacheResult.HIT


def use_cache(inputs: ResolvedInputs) -> ResolvedInputs:
    """Return the inputs with the base model from the cache, if there is a cache and it can hold this model."""
    cache_dir, source = os.environ.get(MODEL_CACHE_DIR_ENV), get_cacheable(inputs.model)
    if not cache_dir or source is None:
        return inputs
    return replace(inputs, model=CachedModelSource(source, CacheEntry.locate(Path(cache_dir), source), read_report()))


def skip_unused_cache(inputs: ResolvedInputs, model: FetchedModel) -> ResolvedInputs:
    """Return the inputs with the source of the base model if this run has not read it from the cache: its weights are
    still to be downloaded."""
    if isinstance(inputs.model, CachedModelSource) and model.cache_result is CacheResult.MISS:
        return replace(inputs, model=inputs.model.source)
    return inputs


def get_cacheable(source: BaseModelSource) -> CacheableModelSource | None:
    """Return the source, or None if a cache cannot hold its model: that of a volume, objects without an ETag, or
    weights whose sizes the hub does not list."""
    if isinstance(source, S3ModelSource) and all(entry.etag for entry in source.objects):
        return source
    return source if isinstance(source, HubModelSource) and lists_all_weights(source.snapshot) else None
