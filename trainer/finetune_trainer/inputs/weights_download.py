"""Downloads the weights of the base model while the data is prepared."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from finetune_trainer.inputs.base_model import HubModelSource
from finetune_trainer.inputs.resolve import DownloadedInputs, ResolvedInputs, fetch_weights


class DownloadStoppedError(Exception):
    """The download was stopped since the run has failed. Raised in the threads of the download only."""


class WeightsDownload:
    """The download of the weights of a base model, which counts the bytes that are still missing."""

    def __init__(self, resolved: ResolvedInputs, downloaded: DownloadedInputs) -> None:
        self._resolved, self._downloaded = resolved, downloaded
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._missing_bytes = resolved.model.size - resolved.model.settings_size
        self._files: Future[DownloadedInputs] | None = None

    @property
    def missing_bytes(self) -> int:
        """Bytes of the weights that are not on disk yet."""
        with self._lock:
            return self._missing_bytes

    def start(self) -> None:
        """Begin the download in a thread. Files of the hub are downloaded in `wait`: its client cannot be stopped."""
        if isinstance(self._resolved.model, HubModelSource):
            return
        pool = ThreadPoolExecutor(1, "weights")
        self._files = pool.submit(self._fetch)
        pool.shutdown(wait=False)

    def wait(self) -> DownloadedInputs:
        """Return the inputs with the complete base model, or raise the error of the download."""
        return self._files.result() if self._files else self._fetch()

    def stop(self) -> None:
        """End the download, if it is not complete, at the next bytes that arrive."""
        self._stopped.set()

    def _fetch(self) -> DownloadedInputs:
        return fetch_weights(self._resolved, self._downloaded, self._count_bytes)

    def _count_bytes(self, byte_count: int) -> None:
        if self._stopped.is_set():
            raise DownloadStoppedError
        with self._lock:
            self._missing_bytes -= byte_count


@contextmanager
def start_weights_download(resolved: ResolvedInputs, downloaded: DownloadedInputs) -> Iterator[WeightsDownload]:
    """Download the weights in the background while the block prepares the data. An error in the block, or a stop
    signal, stops the download."""
    download = WeightsDownload(resolved, downloaded)
    download.start()
    try:
        yield download
    finally:
        download.stop()
