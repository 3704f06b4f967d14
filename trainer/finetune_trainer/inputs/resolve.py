"""The inputs of a run: resolved at its start, then downloaded in the background: first the data, the adapters and the
settings of the base model, with which everything is checked, and then the weights (see `weights_download`)."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune_trainer.contract import DataSource, TrainerConfig
from finetune_trainer.formatting import format_bytes, pluralize
from finetune_trainer.inputs import base_model, data_sources, earlier_results
from finetune_trainer.inputs.base_model import BaseModelSource, FetchedModel, S3ModelSource
from finetune_trainer.inputs.data_sources import DataListing
from finetune_trainer.inputs.earlier_results import EarlierResult, FetchedResult
from finetune_trainer.records.manifest import InputRecord, ModelRecord
from finetune_trainer.storage import S3, InputFile, check_disk_space

__all__ = [
    "DownloadedInputs",
    "InputFile",
    "ResolvedInputs",
    "fetch_weights",
    "log_inputs",
    "resolve_inputs",
    "start_download",
]

log = logging.getLogger(__name__)
_LOG_INTERVAL_SECONDS = 10
_MAX_CONCURRENT_SOURCES = 4  # including the model; each downloads many objects concurrently
START_ADAPTER = ""
"""Name of the adapter that training starts from, beside the names of `evaluation.baselines`."""


@dataclass(frozen=True)
class ResolvedInputs:
    """All inputs of a run as listed, which is enough to compare them with those of an earlier run."""

    s3: S3
    config: TrainerConfig
    model: BaseModelSource
    data: list[DataListing]
    """Files of each data source, then of `validation.sources`, `evaluation.test.sources` and
    `evaluation.bias.pairsURI`."""
    adapter: S3ModelSource | None = None
    baselines: dict[str, S3ModelSource] = field(default_factory=dict)
    """Adapters of `evaluation.baselines`, by name."""
    results: dict[str, EarlierResult] = field(default_factory=dict)
    """The results that adapters belong to, by the name of the baseline or `START_ADAPTER`."""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return self._size_without_model + self.model.size

    @property
    def size_without_weights(self) -> int:
        """Bytes to download without the weights of the base model."""
        return self._size_without_model + self.model.settings_size

    @property
    def skipped_files(self) -> int:
        """Number of files in folders of the data that are left out."""
        return sum(listing.selection.skipped_count for listing in self.data)

    def matches(self, model: ModelRecord, inputs: Sequence[InputRecord]) -> bool:
        """Return whether an earlier run read the same inputs."""
        if not self.model.matches(model):
            return False
        adapter_objects = [entry for adapter in self._adapters for entry in adapter.objects]
        listed_records = [record for listing in self.data for record in listing.list_records()]
        listed_records += map(InputRecord.from_listing, adapter_objects)
        return listed_records == [record.without_sha256() for record in inputs]

    @property
    def _adapters(self) -> list[S3ModelSource]:
        return [*([self.adapter] if self.adapter else []), *self.baselines.values()]

    @property
    def _size_without_model(self) -> int:
        sizes = [listing.size for listing in self.data]
        sizes += [adapter.size for adapter in self._adapters]
        sizes += [result.size for result in self.results.values()]
        return sum(sizes)


@dataclass(frozen=True)
class DownloadedInputs:
    """All inputs of a run on disk."""

    model: FetchedModel
    """The base model, without its weights until `fetch_weights` has completed it."""
    sources: list[tuple[DataSource, list[InputFile]]]
    validation: list[tuple[DataSource, list[InputFile]]] = field(default_factory=list)
    test: list[tuple[DataSource, list[InputFile]]] = field(default_factory=list)
    """Files of `evaluation.test.sources`."""
    adapter: FetchedModel | None = None
    """The adapter that training starts from, if any."""
    pairs: list[InputFile] = field(default_factory=list)
    """Sentence pairs of `evaluation.bias.pairsURI`."""
    baselines: dict[str, FetchedModel] = field(default_factory=dict)
    """Adapters of `evaluation.baselines`, by name."""
    results: dict[str, FetchedResult] = field(default_factory=dict)
    """The results that adapters belong to, by the name of the baseline or `START_ADAPTER`."""
    skipped_files: int = 0
    """Number of files in folders of the data that were left out."""

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
    def adapter_files(self) -> list[InputFile]:
        """Files of the adapter that training starts from, and of the baselines."""
        adapters = [*([self.adapter] if self.adapter else []), *self.baselines.values()]
        return [file for adapter in adapters for file in adapter.files]

    @property
    def files(self) -> list[InputFile]:
        """All data files in the order of sources and keys: to train on, to validate with, to test with, and pairs."""
        sources = [*self.sources, *self.validation, *self.test]
        return [*(file for _, source_files in sources for file in source_files), *self.pairs]

    @property
    def digest(self) -> str:
        """`sha256:…` over URI and content of all data objects."""
        lines = "".join(f"{file.sha256}  {file.uri}\n" for file in self.files)
        return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def resolve_inputs(config: TrainerConfig, s3: S3) -> ResolvedInputs:
    """List data and model. Raises for wrong names, credentials and permissions before anything takes time."""
    data = [data_sources.list_data(source, s3, config.output.uri) for source in _list_data_sources(config)]
    if config.evaluation.bias and config.evaluation.bias.pairs_uri:
        data.append(data_sources.list_s3_data(s3, config.evaluation.bias.pairs_uri))
    model, adapter_uri = base_model.resolve_model(config.model, s3), config.model.adapter_uri
    adapter = base_model.resolve_adapter(adapter_uri, "model.adapterURI", s3) if adapter_uri else None
    baselines = {
        baseline.name: base_model.resolve_adapter(baseline.adapter_uri, f"evaluation.baselines[{index}].adapterURI", s3)
        for index, baseline in enumerate(config.evaluation.baselines)
    }
    return ResolvedInputs(s3, config, model, data, adapter, baselines, _find_results(config, s3))


def _find_results(config: TrainerConfig, s3: S3) -> dict[str, EarlierResult]:
    start_uri = config.model.adapter_uri
    found = {START_ADAPTER: earlier_results.find_result(start_uri, s3) if start_uri else None}
    for baseline in config.evaluation.baselines:
        found[baseline.name] = earlier_results.find_result(baseline.adapter_uri, s3, baseline)
    return {name: result for name, result in found.items() if result}


def log_inputs(resolved: ResolvedInputs) -> None:
    """Log how much is to be downloaded."""
    files = pluralize(sum(len(listing.selection.names) for listing in resolved.data), "data file")
    weights_bytes = resolved.model.size - resolved.model.settings_size
    weights = f"and then {format_bytes(weights_bytes)} of weights" if weights_bytes else "and no weights"
    size, uri = format_bytes(resolved.size_without_weights), resolved.config.model.uri
    log.info("inputs: %s and %s; %s to download, %s", files, uri, size, weights)


def _list_data_sources(config: TrainerConfig) -> list[DataSource]:
    return [*config.dataset.sources, *_list_validation_sources(config), *_list_test_sources(config)]


def _list_validation_sources(config: TrainerConfig) -> list[DataSource]:
    validation = config.dataset.validation
    return (validation and validation.sources) or []


def _list_test_sources(config: TrainerConfig) -> list[DataSource]:
    return config.evaluation.test.sources if config.evaluation.test else []


def start_download(resolved: ResolvedInputs, folder: Path) -> Future[DownloadedInputs]:
    """Download the inputs without the weights of the base model to `folder` in threads. The future gets the result or
    the error."""
    check_disk_space(folder, {"inputs without weights": resolved.size_without_weights})
    pool = ThreadPoolExecutor(_MAX_CONCURRENT_SOURCES, "download")
    counter = _DownloadProgress(resolved.size_without_weights)
    data = [
        pool.submit(listing.fetch, folder / "data" / str(index), counter.add_bytes)
        for index, listing in enumerate(resolved.data)
    ]
    settings = pool.submit(resolved.model.fetch_settings, folder / "model", counter.add_bytes)
    adapters = {
        name: pool.submit(_fetch_adapter, resolved, name, folder / "adapters" / str(index), counter.add_bytes)
        for index, name in enumerate(_name_adapters(resolved))
    }
    collector_pool = ThreadPoolExecutor(1, "inputs")
    inputs_future = collector_pool.submit(_collect_downloads, resolved, data, settings, adapters, counter)
    for executor in (pool, collector_pool):
        executor.shutdown(wait=False)
    return inputs_future


def _name_adapters(resolved: ResolvedInputs) -> dict[str, S3ModelSource]:
    """Return the adapter that training starts from as `START_ADAPTER`, and the baselines under their names."""
    return {**({START_ADAPTER: resolved.adapter} if resolved.adapter else {}), **resolved.baselines}


def _fetch_adapter(
    resolved: ResolvedInputs, name: str, folder: Path, on_bytes: Callable[[int], None]
) -> tuple[FetchedModel, FetchedResult | None]:
    """Download an adapter, and what is needed of the result that it belongs to."""
    model = base_model.fetch_model(_name_adapters(resolved)[name], folder / "adapter", on_bytes)
    result = resolved.results.get(name)
    return model, result.fetch(model.files, folder, on_bytes) if result else None


def _collect_downloads(
    resolved: ResolvedInputs,
    data: Sequence[Future[list[InputFile]]],
    settings: Future[FetchedModel],
    adapters: Mapping[str, Future[tuple[FetchedModel, FetchedResult | None]]],
    counter: _DownloadProgress,
) -> DownloadedInputs:
    # Data first: it is small, and its errors are more likely.
    config, downloaded_files = resolved.config, iter([future.result() for future in data])
    sources, validation, test = (
        [(source, next(downloaded_files)) for source in group]
        for group in (config.dataset.sources, _list_validation_sources(config), _list_test_sources(config))
    )
    fetched = {name: future.result() for name, future in adapters.items()}
    fetched_adapters = {name: model for name, (model, _) in fetched.items()}
    downloaded = DownloadedInputs(
        settings.result(),
        sources,
        validation,
        test,
        adapter=fetched_adapters.pop(START_ADAPTER, None),
        pairs=[file for pair_files in downloaded_files for file in pair_files],
        baselines=fetched_adapters,
        results={name: result for name, (_, result) in fetched.items() if result},
        skipped_files=resolved.skipped_files,
    )
    log.info("inputs: downloaded %s without the weights of the base model", counter.format_summary())
    return downloaded


def fetch_weights(
    resolved: ResolvedInputs, downloaded: DownloadedInputs, on_bytes: Callable[[int], None] = lambda _: None
) -> DownloadedInputs:
    """Complete the base model with its weights. Calls `on_bytes` with the number of bytes of each chunk that arrives;
    an error that it raises ends the download."""
    size = resolved.model.size - resolved.model.settings_size
    if size:  # otherwise the folder may be on a volume that is not written to
        check_disk_space(downloaded.model_dir, {"weights": size})
    counter = _DownloadProgress(size)

    def count_bytes(byte_count: int) -> None:
        counter.add_bytes(byte_count)
        on_bytes(byte_count)

    model = resolved.model.fetch_weights(downloaded.model, count_bytes)
    if size:
        log.info("inputs: downloaded %s of weights", counter.format_summary())
    log.info("inputs: the base model is complete; revision %s", model.revision)
    return replace(downloaded, model=model)


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
