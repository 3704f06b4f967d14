"""Reconcile one FineTuneJob: get, observe, plan, apply, compute and patch the status, plan and apply the follow-up,
requeue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.controller.finetunejob import planning, transition_metrics
from finetune_operator.controller.finetunejob.checkpoint_cleaning import CheckpointCleaner
from finetune_operator.controller.finetunejob.job_control import JobControl
from finetune_operator.controller.finetunejob.observer import Observer
from finetune_operator.controller.finetunejob.ownership import OwnershipGuard
from finetune_operator.controller.finetunejob.planning import Changes
from finetune_operator.controller.finetunejob.request import ReconcileRequest, UnreadableObjectError, build_request
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.kube.cache import get_resource_version
from finetune_operator.kube.client import FINETUNEJOBS, KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache, get_finetunejob_key
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed.objects import is_being_deleted
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_operator.settings import Settings
from finetune_operator.status import events
from finetune_operator.status.job_status import compute_status, is_terminal

log = logging.getLogger(__name__)

_REQUEUE_AFTER_PATCH = 1.0
"""Seconds until the next reconcile after the Job was patched. The response also contains changes by others, and no
watch event reports them again."""


class FineTuneJobReconciler:
    """Brings the cluster to the desired state of one FineTuneJob. It is level-based: only the current state matters."""

    def __init__(
        self,
        cache: FineTuneJobCache,
        client: KubeClient,
        settings: Settings,
        now: Callable[[], datetime],
        profile_store: ProfileStore,
    ) -> None:
        self._cache = cache
        self._client = client
        self._settings = settings
        self._now = now
        self._profile_store = profile_store
        self._observer = Observer(cache, client)
        self._job_control = JobControl(cache, client, settings)
        self._ownership = OwnershipGuard(cache, client, settings.installation_id)
        self._cleaner = CheckpointCleaner(cache, client, settings, profile_store)

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile once. Return the seconds until the next reconcile, or None if only events need one."""
        request = self._get(key)
        requeue_after = await self._reconcile_run(request) if request else None
        await self._cleaner.record_deleted_runs(key)
        return requeue_after

    async def _reconcile_run(self, request: ReconcileRequest) -> float | None:
        observed = await self._observer.observe(request)
        if await self._ownership.is_foreign(request, observed.job or self._cache.get_job(request.body)):
            return None
        observed = await self._apply(request, self._plan(request, observed), observed)
        if await self._ownership.is_foreign(request, observed.job):  # both installations were about to create it
            return None
        observed = await self._observer.add_details(request, observed)
        status = compute_status(request.meta, request.previous_status, observed, request.now)
        await self._publish_status(request, status)
        if is_terminal(status):
            self._cache.evict_run(request.key)
            observed = ObservedState(job=self._cache.get_job(request.body))
        follow_up = planning.plan_follow_up(request, observed, status)
        applied = await self._apply(request, follow_up, observed)
        if follow_up.job_patch and _is_newer(applied.job, observed.job):
            return _REQUEUE_AFTER_PATCH
        requeue_after = planning.compute_requeue_after(request, observed, status)
        if not is_terminal(status) or follow_up.delete_finetunejob:
            return requeue_after
        next_check = await self._cleaner.clean_ended_run(request, status)
        return min((each for each in (requeue_after, next_check) if each is not None), default=None)

    def _get(self, key: ObjectKey) -> ReconcileRequest | None:
        """Return the FineTuneJob, or None if it is deleted, being deleted or unreadable."""
        body = self._cache.get_finetunejob(key)
        if body is None or is_being_deleted(body):
            self._cache.evict_run(key)
            return None
        try:
            request = build_request(key, body, self._now())
        except UnreadableObjectError as error:
            self._record_unreadable(key, body["metadata"]["uid"], error)
            return None
        self._cache.unreadable_objects.pop(key, None)
        return request

    def _record_unreadable(self, key: ObjectKey, uid: str, error: UnreadableObjectError) -> None:
        """Log once that this FineTuneJob is left alone, and count it."""
        if self._cache.unreadable_objects.get(key) != uid:
            log.warning(
                "the FineTuneJob was written by a newer version and is left alone until the operator is upgraded: %s",
                error,
            )
        self._cache.unreadable_objects[key] = uid

    def _plan(self, request: ReconcileRequest, observed: ObservedState) -> Changes:
        return planning.plan(request, observed, self._settings, self._profile_store.read())

    async def _apply(self, request: ReconcileRequest, changes: Changes, observed: ObservedState) -> ObservedState:
        """Make the planned writes. No other method writes Jobs, Services or FineTuneJobs, except their status.

        Return the state after the writes.
        """
        job = await self._create_or_adopt_job(request, changes)
        if isinstance(job, Blocked):
            return replace(observed, blocked=job)
        if job:
            observed = await self._observer.observe_job(request, job)
            if await self._ownership.is_foreign(request, job):
                return observed
            changes = self._plan(request, observed)  # an adopted Job may be between two attempts
        if changes.ensure_service:
            await self._job_control.ensure_service(request)
        if changes.delete_job:
            remaining = await self._job_control.delete_job(request.key, changes.delete_job)
            observed = await self._observer.observe_job(request, remaining)
        if changes.job_patch and observed.job:
            observed = replace(
                observed, job=await self._job_control.patch_job(request.key, observed.job, changes.job_patch)
            )
        await self._job_control.delete_pods(changes.delete_pods)
        await self._job_control.delete_pods(changes.kill_pods, planning.KILL_SECONDS)
        if changes.delete_finetunejob:
            await self._delete_finetunejob(request)
        return observed

    async def _create_or_adopt_job(self, request: ReconcileRequest, changes: Changes) -> Body | Blocked | None:
        """Return the Job, or why there is none, or None if no creation is planned."""
        if changes.create_job:
            return await self._job_control.create_job(request, changes.create_job)
        if changes.adopt_job and (existing_job := await self._observer.find_owned_job(request)):
            return existing_job
        return changes.blocked

    async def _delete_finetunejob(self, request: ReconcileRequest) -> None:
        """Delete the FineTuneJob in the version with the new status.

        The cache is updated at once, so that a watch event that is still missing causes no second request.
        """
        stored = self._cache.get_finetunejob(request.key) or request.body
        remaining = await self._client.delete_finetunejob(stored)
        if remaining:
            self._cache.finetunejobs.update(request.key, remaining)
        else:
            self._cache.finetunejobs.delete(stored)

    async def _publish_status(self, request: ReconcileRequest, status: FineTuneJobStatus) -> None:
        """Store the status if it differs, then count the transition and record an Event."""
        patch = events.create_merge_patch(request.previous_status.to_json(), status.to_json())
        if not patch:
            return
        try:
            stored = await self._patch_status(request, patch)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return  # the FineTuneJob was deleted
            raise
        self._cache.finetunejobs.update(get_finetunejob_key(stored), stored)
        transition_metrics.count_status_change(request.meta, request.previous_status, status)
        await self._record_event(request, status, get_resource_version(stored))

    async def _patch_status(self, request: ReconcileRequest, patch: Body) -> Body:
        """Store the status, without its progress if the API server rejects it.

        The CRD may be of an earlier version, which does not know a stage of this one. The progress is only displayed.
        """
        request_body = {"metadata": {"resourceVersion": request.body["metadata"]["resourceVersion"]}, "status": patch}
        try:
            return await self._client.patch_status(
                FINETUNEJOBS, request.meta.namespace, request.meta.name, request_body
            )
        except ApiError as error:
            without_progress = {key: value for key, value in patch.items() if key != "progress"}
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY or without_progress == patch:
                raise
        if not without_progress:
            return request.body
        return await self._client.patch_status(
            FINETUNEJOBS, request.meta.namespace, request.meta.name, {**request_body, "status": without_progress}
        )

    async def _record_event(self, request: ReconcileRequest, status: FineTuneJobStatus, status_version: int) -> None:
        event = events.build_transition_event(
            request.meta, request.previous_status, status, status_version, request.now
        )
        if event is None:
            return
        log.info("%s: %s", event["reason"], event["message"])
        try:
            await self._client.create_event(event)
        except (ApiError, *CONNECTION_ERRORS) as error:  # the status contains the same information
            log.warning("could not record the Event: %s: %s", type(error).__name__, error)


def _is_newer(patched: Body | None, job: Body | None) -> bool:
    """Return whether the patch took effect. If a webhook reverted it, another reconcile would not help."""
    return patched is not None and job is not None and get_resource_version(patched) > get_resource_version(job)
