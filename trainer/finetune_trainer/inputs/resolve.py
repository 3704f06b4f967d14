"""The inputs of a run: resolved at its start, downloaded in the background."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from finetune_trainer.contract import DataSource, TrainerConfig
from finetune_trainer.formatting import format_bytes
from finetune_trainer.inputs import base_model
from finetune_trainer.inputs.base_model import BaseModelSource, FetchedModel, S3ModelSource
from finetune_trainer.records.manifest import InputRecord, ModelRecord
from finetune_trainer.storage import (
    DATA_ERRORS,
    S3,
    InputFile,
    Location,
    S3Object,
    check_disk_space,
    download_objects,
    find_objects,
)

__all__ = ["DownloadedInputs", "InputFile", "ResolvedInputs", "resolve_inputs", "start_download"]

log = logging.getLogger(__name__)
_LOG_INTERVAL_SECONDS = 10
_MAX_CONCURRENT_SOURCES = 4  # including the model; each downloads many objects concurrently


@dataclass(frozen=True)
class ResolvedInputs:
    """All inputs of a run as listed, which is enough to compare them with those of an earlier run."""

    s3: S3
    config: TrainerConfig
    model: BaseModelSource
    objects: list[list[S3Object]]
    """Objects of each data source, then of `validation.sources`, then of `evaluation.bias.pairsURI`."""
    adapter: S3ModelSource | None = None

    @property
    def size(self) -> int:
        """Bytes to download."""
        adapter_size = self.adapter.size if self.adapter else 0
        return (
            self.model.size
            + adapter_size
            + sum(s3_object.size for source_objects in self.objects for s3_object in source_objects)
        )

    def matches(self, model: ModelRecord, inputs: Sequence[InputRecord]) -> bool:
        """Return whether an earlier run read the same inputs."""
        adapter_objects = self.adapter.objects if self.adapter else []
        listed_records = [
            InputRecord.from_listing(s3_object)
            for source_objects in (*self.objects, adapter_objects)
            for s3_object in source_objects
        ]
        return listed_records == [record.without_sha256() for record in inputs] and self.model.matches(model)


@dataclass(frozen=True)
class DownloadedInputs:
    """All inputs of a run on disk."""

    model: FetchedModel
    sources: list[tuple[DataSource, list[InputFile]]]
    validation: list[tuple[DataSource, list[InputFile]]] = field(default_factory=list)
    adapter: FetchedModel | None = None
    """The adapter that training starts from, if any."""
    pairs: list[InputFile] = field(default_factory=list)
    """Sentence pairs of `evaluation.bias.pairsURI`."""
    baselines: dict[str, FetchedModel] = field(default_factory=dict)
    """Adapters of `evaluation.baselines`, by name."""

    @property
    def model_dir(self) -> Path:
        """Folder of the base model."""
        return self.model.folder

    @property
    def model_revision(self) -> str:
        """Revision that identifies the base model."""
        return self.model.revision

    @property
    def adapter_dir(self) -> Path | None:
        """Folder of the adapter that training starts from, if any."""
        return self.adapter.folder if self.adapter else None

    @property
    def baseline_dirs(self) -> dict[str, Path]:
        """Folders of the adapters of `evaluation.baselines`, by name."""
        return {name: baseline.folder for name, baseline in self.baselines.items()}

    @property
    def start_revision(self) -> str:
        """Revisions of the base model and of the adapter that training starts from."""
        return f"{self.model_revision} {self.adapter.revision}" if self.adapter else self.model_revision

    @property
    def files(self) -> list[InputFile]:
        """All data files in the order of sources and keys; those of `validation.sources` and sentence pairs last."""
        return [*(file for _, source_files in [*self.sources, *self.validation] for file in source_files), *self.pairs]

    @property
    def digest(self) -> str:
        """`sha256:…` over URI and content of all data objects."""
        lines = "".join(f"{file.sha256}  {file.uri}\n" for file in self.files)
        return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def resolve_inputs(config: TrainerConfig, s3: S3) -> ResolvedInputs:
    """List data and model. Raises for wrong names, credentials and permissions before anything takes time."""
    pair_uris = (
        [config.evaluation.bias.pairs_uri] if config.evaluation.bias and config.evaluation.bias.pairs_uri else []
    )
    uris = [*(source.uri for source in _list_data_sources(config)), *pair_uris]
    objects = [find_objects(s3, Location.parse(uri), DATA_ERRORS) for uri in uris]
    model, adapter = base_model.resolve_model(config.model, s3), base_model.resolve_adapter(config.model, s3)
    resolved = ResolvedInputs(s3, config, model, objects, adapter)
    count = sum(len(source_objects) for source_objects in objects)
    log.info("inputs: %d data objects and %s, %s to download", count, config.model.uri, format_bytes(resolved.size))
    return resolved


def _list_data_sources(config: TrainerConfig) -> list[DataSource]:
    validation = config.dataset.validation
    return [*config.dataset.sources, *((validation and validation.sources) or [])]


def start_download(resolved: ResolvedInputs, folder: Path) -> Future[DownloadedInputs]:
    """Download the inputs to `folder` in threads. The future gets the result or the error."""
    check_disk_space(folder, resolved.size)
    download_pool = ThreadPoolExecutor(_MAX_CONCURRENT_SOURCES, "download")
    counter = _DownloadProgress(resolved.size)
    model_future = download_pool.submit(resolved.model.fetch, folder / "model", counter.add_bytes)
    data_futures = [
        download_pool.submit(
            download_objects, resolved.s3, source_objects, folder / "data" / str(index), DATA_ERRORS, counter.add_bytes
        )
        for index, source_objects in enumerate(resolved.objects)
    ]
    adapter_future = (
        download_pool.submit(resolved.adapter.fetch, folder / "base-adapter", counter.add_bytes)
        if resolved.adapter
        else None
    )
    collector_pool = ThreadPoolExecutor(1, "inputs")
    inputs_future = collector_pool.submit(
        _collect_downloads, resolved.config, (model_future, adapter_future), data_futures, counter
    )
    for executor in (download_pool, collector_pool):
        executor.shutdown(wait=False)
    return inputs_future


def _collect_downloads(
    config: TrainerConfig,
    model_futures: tuple[Future[FetchedModel], Future[FetchedModel] | None],
    data_futures: Iterable[Future[list[InputFile]]],
    counter: _DownloadProgress,
) -> DownloadedInputs:
    # Data first: it is small, and its errors are more likely.
    sources, downloaded_files = _list_data_sources(config), [future.result() for future in data_futures]
    files_by_source = list(zip(sources, downloaded_files, strict=False))
    pairs = [file for pair_files in downloaded_files[len(sources) :] for file in pair_files]
    training_count = len(config.dataset.sources)
    model_future, adapter_future = model_futures
    start_adapter = adapter_future.result() if adapter_future else None
    downloaded = DownloadedInputs(
        model_future.result(), files_by_source[:training_count], files_by_source[training_count:], start_adapter, pairs
    )
    log.info("inputs: downloaded %s; model revision %s", counter.format_summary(), downloaded.model_revision)
    return downloaded


class _DownloadProgress:
    """Counts the bytes of all threads and logs them every few seconds."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._lock = threading.Lock()
        self._downloaded_bytes = 0
        self._started = self._last_logged = time.monotonic()

    def add_bytes(self, byte_count: int) -> None:
        with self._lock:
            self._downloaded_bytes += byte_count
            is_due = time.monotonic() - self._last_logged >= _LOG_INTERVAL_SECONDS
            if is_due:
                self._last_logged = time.monotonic()
        if is_due:
            log.info("inputs: %s of %s", self.format_summary(), format_bytes(self._total_bytes))

    def format_summary(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        return (
            f"{format_bytes(self._downloaded_bytes)} in {seconds:.1f} s "
            f"({format_bytes(int(self._downloaded_bytes / seconds))}/s)"
        )
