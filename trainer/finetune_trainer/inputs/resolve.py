"""What goes in: found at once, fetched in the background while torch is imported."""

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
from finetune_trainer.inputs import base_model
from finetune_trainer.inputs.base_model import BaseModel, FetchedModel, S3Model
from finetune_trainer.records.manifest import InputRecord, ModelRecord
from finetune_trainer.storage import DATA, S3, InputFile, Location, S3Object, check_space, download, find

__all__ = ["InputFile", "Inputs", "Located", "locate", "start"]

log = logging.getLogger(__name__)
_SAY_EVERY_SECONDS = 10
_SOURCES_AT_ONCE = 4  # the model is one; each fetches many objects at once


@dataclass(frozen=True)
class Located:
    """Everything that will go in, as listed: enough to tell whether an earlier run had the same."""

    s3: S3
    config: TrainerConfig
    model: BaseModel
    objects: list[list[S3Object]]
    """Per data source, then those of `validation.sources`, then `evaluation.bias.pairsURI`."""
    adapter: S3Model | None = None

    @property
    def size(self) -> int:
        """Bytes to download."""
        adapter = self.adapter.size if self.adapter else 0
        return self.model.size + adapter + sum(each.size for found in self.objects for each in found)

    def matches(self, model: ModelRecord, inputs: Sequence[InputRecord]) -> bool:
        """Whether an earlier run read the very same inputs."""
        adapter = self.adapter.objects if self.adapter else []
        listed = [InputRecord.listed(each) for found in (*self.objects, adapter) for each in found]
        return listed == [each.as_listed() for each in inputs] and self.model.matches(model)


@dataclass(frozen=True)
class Inputs:
    """Everything that goes in, on disk."""

    model: FetchedModel
    sources: list[tuple[DataSource, list[InputFile]]]
    validation: list[tuple[DataSource, list[InputFile]]] = field(default_factory=list)
    adapter: FetchedModel | None = None
    """The adapter to train on, if there is one."""
    pairs: list[InputFile] = field(default_factory=list)
    """Sentence pairs of `evaluation.bias.pairsURI`."""

    @property
    def model_dir(self) -> Path:
        """Where the base model lies."""
        return self.model.folder

    @property
    def model_revision(self) -> str:
        """What identifies the base model."""
        return self.model.revision

    @property
    def adapter_dir(self) -> Path | None:
        """Where the adapter to train on lies."""
        return self.adapter.folder if self.adapter else None

    @property
    def start_revision(self) -> str:
        """What identifies all that training starts from."""
        return f"{self.model_revision} {self.adapter.revision}" if self.adapter else self.model_revision

    @property
    def files(self) -> list[InputFile]:
        """All data files, in the order of sources and keys; those of `validation.sources` and sentence pairs
        last."""
        return [*(file for _, files in [*self.sources, *self.validation] for file in files), *self.pairs]

    @property
    def digest(self) -> str:
        """`sha256:…` over every data object's URI and content."""
        lines = "".join(f"{file.sha256}  {file.uri}\n" for file in self.files)
        return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def locate(config: TrainerConfig, s3: S3) -> Located:
    """List data and model; wrong names, keys and permissions are told here, before anything costs time."""
    pairs = [config.evaluation.bias.pairs_uri] if config.evaluation.bias and config.evaluation.bias.pairs_uri else []
    uris = [*(source.uri for source in _sources(config)), *pairs]
    objects = [find(s3, Location.parse(uri), DATA) for uri in uris]
    model, adapter = base_model.locate(config.model, s3), base_model.locate_adapter(config.model, s3)
    located = Located(s3, config, model, objects, adapter)
    count = sum(len(found) for found in objects)
    log.info("inputs: %d data objects and %s, %s to download", count, config.model.uri, _bytes(located.size))
    return located


def _sources(config: TrainerConfig) -> list[DataSource]:
    validation = config.dataset.validation
    return [*config.dataset.sources, *((validation and validation.sources) or [])]


def start(located: Located, folder: Path) -> Future[Inputs]:
    """Fetch all of it into `folder`, in threads; the future holds the result or the error."""
    check_space(folder, located.size)
    pool = ThreadPoolExecutor(_SOURCES_AT_ONCE, "download")
    counter = _Counter(located.size)
    model = pool.submit(located.model.fetch, folder / "model", counter.add)
    files = [
        pool.submit(download, located.s3, found, folder / "data" / str(number), DATA, counter.add)
        for number, found in enumerate(located.objects)
    ]
    adapter = pool.submit(located.adapter.fetch, folder / "base-adapter", counter.add) if located.adapter else None
    together = ThreadPoolExecutor(1, "inputs")
    inputs = together.submit(_gather, located.config, (model, adapter), files, counter)
    for each in (pool, together):
        each.shutdown(wait=False)
    return inputs


def _gather(
    config: TrainerConfig,
    models: tuple[Future[FetchedModel], Future[FetchedModel] | None],
    files: Iterable[Future[list[InputFile]]],
    counter: _Counter,
) -> Inputs:
    # Data first: it is small, and its errors are the likelier ones.
    sources, found = _sources(config), [future.result() for future in files]
    fetched = list(zip(sources, found, strict=False))
    pairs = [file for rest in found[len(sources) :] for file in rest]
    training = len(config.dataset.sources)
    model, adapter = models
    start = adapter.result() if adapter else None
    inputs = Inputs(model.result(), fetched[:training], fetched[training:], start, pairs)
    log.info("inputs: downloaded %s; model revision %s", counter.summary(), inputs.model_revision)
    return inputs


class _Counter:
    """Counts bytes of all threads and says so now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._lock = threading.Lock()
        self._done = 0
        self._started = self._said = time.monotonic()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            due = time.monotonic() - self._said >= _SAY_EVERY_SECONDS
            if due:
                self._said = time.monotonic()
        if due:
            log.info("inputs: %s of %s", self.summary(), _bytes(self._total))

    def summary(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        return f"{_bytes(self._done)} in {seconds:.1f} s ({_bytes(int(self._done / seconds))}/s)"


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
