"""Poll the progress of running trainers.

The response is untrusted: it is limited in time and size and validated, and no decision depends on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.controller.finetunejob.progress_reader import ProgressReader
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache, ReportedProgress
from finetune_operator.observed.objects import is_controlled_by, is_finished
from finetune_operator.observed.pod import find_newest_pod, is_trainer_running, list_rank_zero_pods
from finetune_trainer.contract import PROGRESS_PORT, Progress

REQUEST_TIMEOUT = 2.0
"""Seconds until a pod must have responded."""
MAX_CONNECTIONS = 512
"""Maximum number of concurrent connections."""
MAX_NAMESPACE_CONNECTIONS = 64
"""Maximum number of concurrent connections to pods of one namespace."""
POLL_TIMEOUT = 3 * REQUEST_TIMEOUT
"""Seconds until a poll ends. Pods that were not reached before are polled the next time."""


class ProgressPoller:
    """Polls the pod of rank 0 of each running FineTuneJob."""

    def __init__(self, cache: FineTuneJobCache, interval: float) -> None:
        self.interval = interval
        self._cache = cache

    def reset(self) -> None:
        """Forget all progress: another replica may have stored a newer one in the meantime."""
        self._cache.reported_progress.clear()

    async def poll(self, enqueue: Callable[[ObjectKey], None]) -> None:
        """Poll all running trainers once, and enqueue the FineTuneJobs whose progress changed."""
        running_pods = list(self._find_running_pods())
        if not running_pods:
            return
        secrets.SystemRandom().shuffle(running_pods)  # so that a timeout does not always hit the same pods
        fetcher = ProgressFetcher()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_TIMEOUT):
                await asyncio.gather(*(self._poll_pod(fetcher, key, pod, enqueue) for key, pod in running_pods))

    def _find_running_pods(self) -> Iterator[tuple[ObjectKey, Body]]:
        """Yield the pod of rank 0 of each running FineTuneJob. Owners are checked, because any user may label a pod."""
        for key in self._cache.jobs.list_keys():
            if key.namespace in self._cache.unreadable_namespaces:  # the address may belong to another pod by now
                continue
            body = self._cache.get_finetunejob(key)
            job = self._cache.get_job(body) if body and not is_finished(body) else None
            if job is None or key in self._cache.foreign_jobs:  # another installation polls those
                continue
            uid = job["metadata"]["uid"]
            owned_pods = (pod for pod in self._cache.pods.list_by_key(key) if is_controlled_by(pod, uid))
            pod = find_newest_pod(list_rank_zero_pods(owned_pods))
            if pod and is_trainer_running(pod):
                yield key, pod

    async def _poll_pod(
        self, fetcher: ProgressFetcher, key: ObjectKey, pod: Body, enqueue: Callable[[ObjectKey], None]
    ) -> None:
        address = find_pod_address(pod)
        progress = await fetcher.fetch(key.namespace, address) if address else None
        if progress and has_changed(progress, self._cache.get_last_progress(key, pod)):
            self._cache.reported_progress[key] = ReportedProgress(pod["metadata"]["uid"], progress)
            enqueue(key)


class ProgressFetcher:
    """Requests the progress of many pods with limited concurrency.

    A namespace with many unresponsive pods delays only itself: its share of the connections is limited, and the timeout
    of a pod starts when its connection is opened.
    """

    def __init__(self) -> None:
        self._reader = ProgressReader(PROGRESS_PORT, REQUEST_TIMEOUT)
        self._semaphore = asyncio.Semaphore(MAX_CONNECTIONS)
        self._namespace_semaphores: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_NAMESPACE_CONNECTIONS)
        )

    async def fetch(self, namespace: str, address: str) -> Progress | None:
        """Return what `ProgressReader.read` returns, as soon as a connection is available."""
        async with self._namespace_semaphores[namespace], self._semaphore:
            return await self._reader.read(address)


def find_pod_address(pod: Body) -> str | None:
    """Return the pod's IP address, or None if it has none or uses that of its node."""
    if pod.get("spec", {}).get("hostNetwork"):
        return None
    address: str | None = pod.get("status", {}).get("podIP")
    return address or None


def has_changed(current: Progress, previous: Progress | None) -> bool:
    """Return whether the progress differs in more than its time."""
    if previous is None:
        return True
    return current.model_dump(exclude={"last_update_time"}) != previous.model_dump(exclude={"last_update_time"})
