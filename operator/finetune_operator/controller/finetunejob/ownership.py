"""Leave runs alone that another installation of the operator has started.

The installation that creates the Job of a run owns the run as long as the Job exists: the name of the Job is that of
the FineTuneJob, so the API server accepts only one.
"""

from __future__ import annotations

import logging

from finetune_operator.api.objects import Body
from finetune_operator.controller.finetunejob.request import ReconcileRequest
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed.job import get_installation_id
from finetune_operator.status import events

log = logging.getLogger(__name__)


class OwnershipGuard:
    """Decides whether another installation owns a run, and reports it once."""

    def __init__(self, cache: FineTuneJobCache, client: KubeClient, installation_id: str) -> None:
        self._cache = cache
        self._client = client
        self._installation_id = installation_id

    async def is_foreign(self, request: ReconcileRequest, job: Body | None) -> bool:
        """Return whether the Job names another installation. A Job without a name is adopted."""
        foreign_id = get_installation_id(job) if job else None
        if job is None or foreign_id in (None, self._installation_id):
            self._cache.foreign_jobs.pop(request.key, None)
            return False
        if self._cache.foreign_jobs.get(request.key) != job["metadata"]["uid"]:
            await self._report(request, job, str(foreign_id))
        return True

    async def _report(self, request: ReconcileRequest, job: Body, foreign_id: str) -> None:
        """Log it once per namespace, count the Job, and record an Event of the FineTuneJob."""
        namespaces = {key.namespace for key in self._cache.foreign_jobs}
        if request.key.namespace not in namespaces:
            log.warning(
                "installation %s also watches namespace %s; its runs there are left alone by this one, %s",
                foreign_id, request.key.namespace, self._installation_id or "which has no id",
            )  # fmt: skip
        self._cache.foreign_jobs[request.key] = job["metadata"]["uid"]
        event = events.build_foreign_job_event(request.meta, job, foreign_id, request.now)
        try:
            await self._client.create_event(event)
        except (ApiError, *CONNECTION_ERRORS) as error:  # the log and the metric contain the same information
            log.warning("could not record the Event: %s: %s", type(error).__name__, error)
