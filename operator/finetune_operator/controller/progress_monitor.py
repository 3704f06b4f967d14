"""Poll the progress of all running trainers into the cache."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.controller import progress_poller
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache, ReportedProgress
from finetune_operator.observed import objects


class ProgressMonitor:
    """Polls the pod of rank 0 of each running FineTuneJob."""

    def __init__(self, cache: FineTuneJobCache, interval: float) -> None:
        self.interval = interval
        self._cache = cache

    def reset(self) -> None:
        """Forget all progress: another replica may have received and stored a later one since."""
        self._cache.reported_progress.clear()

    async def poll(self, enqueue: Callable[[ObjectKey], None]) -> None:
        """Poll all running trainers once, and enqueue the FineTuneJobs whose progress changed."""
        running_pods = list(self._find_running_pods())
        if not running_pods:
            return
        secrets.SystemRandom().shuffle(running_pods)  # so that a timeout does not always hit the same pods
        async with progress_poller.create_session() as session:
            poller = progress_poller.ProgressPoller(session)
            with suppress(TimeoutError):
                async with asyncio.timeout(progress_poller.POLL_TIMEOUT):
                    await asyncio.gather(*(self._poll_pod(poller, key, pod, enqueue) for key, pod in running_pods))

    def _find_running_pods(self) -> Iterator[tuple[ObjectKey, Body]]:
        """Return the reporting pod of each unfinished run. Owners are checked, because anybody may label a pod."""
        for key in self._cache.jobs.list_keys():
            if key.namespace in self._cache.unreadable_namespaces:  # the address may belong to another pod by now
                continue
            body = self._cache.get_finetunejob(key)
            job = self._cache.get_job(body) if body and not objects.is_job_finished(body) else None
            if job is None:
                continue
            uid = job["metadata"]["uid"]
            owned_pods = (pod for pod in self._cache.pods.list_by_key(key) if objects.is_controlled_by(pod, uid))
            pod = objects.find_newest_pod(objects.rank_zero_pods(owned_pods))
            if pod and objects.is_trainer_running(pod):
                yield key, pod

    async def _poll_pod(
        self, poller: progress_poller.ProgressPoller, key: ObjectKey, pod: Body, enqueue: Callable[[ObjectKey], None]
    ) -> None:
        url = progress_poller.build_progress_url(pod)
        progress = await poller.poll(key.namespace, url) if url else None
        if progress and progress_poller.has_changed(progress, self._cache.get_last_progress(key, pod)):
            self._cache.reported_progress[key] = ReportedProgress(pod["metadata"]["uid"], progress)
            enqueue(key)
