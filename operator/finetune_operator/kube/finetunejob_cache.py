"""Cache of FineTuneJobs and their Jobs and pods."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from itertools import chain
from typing import Any, NamedTuple

from finetune_operator.api import KIND
from finetune_operator.api.labels import JOB_LABEL
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.kube import transform
from finetune_operator.kube.cache import ObjectCache
from finetune_operator.kube.client import FINETUNEJOBS, JOBS, PODS
from finetune_operator.kube.informer import WatchedResource
from finetune_operator.observed.cleaning import may_have_checkpoints
from finetune_operator.observed.job import holds_scratch_claims
from finetune_operator.observed.objects import is_controlled_by, is_finished, is_managed_elsewhere
from finetune_operator.observed.pod import find_newest_pod, get_completion_index, get_finished_at, is_alive
from finetune_operator.telemetry import counters
from finetune_trainer.contract import Progress

_DELETED_RUN_SECONDS = 900.0
"""Seconds for which a deleted FineTuneJob is kept if its cleaning cannot be recorded."""


def get_finetunejob_key(body: Body) -> ObjectKey:
    """Return the key of a FineTuneJob. Its labels are not read, because its user sets them."""
    return ObjectKey(KIND, body["metadata"]["namespace"], body["metadata"]["name"])


def get_owner_key(body: Body) -> ObjectKey:
    """Return the key of the FineTuneJob that the label of a Job or pod names, by default one with the same name."""
    meta = body["metadata"]
    return ObjectKey(KIND, meta["namespace"], meta.get("labels", {}).get(JOB_LABEL, meta["name"]))


class DeletedRun(NamedTuple):
    """A FineTuneJob that was deleted before its checkpoints were cleaned."""

    key: ObjectKey
    body: Body
    noticed_at: float
    """Monotonic time."""


class FineTuneJobObjects(ObjectCache):
    """Existing FineTuneJobs, and deleted ones until the cleaning of their checkpoints is recorded."""

    def __init__(self) -> None:
        super().__init__(transform.strip_finetunejob, lambda _key, body: not is_managed_elsewhere(body))
        self._deleted_runs: dict[str, DeletedRun] = {}

    def list_deleted_runs(self, key: ObjectKey) -> list[DeletedRun]:
        """Return the deleted FineTuneJobs of that name whose cleaning is not recorded."""
        return [run for run in self._deleted_runs.values() if run.key == key]

    def list_deleted_keys(self) -> list[ObjectKey]:
        """Return the keys of deleted FineTuneJobs whose cleaning is not recorded."""
        return [run.key for run in self._deleted_runs.values()]

    def forget_deleted_run(self, run: DeletedRun) -> None:
        """Drop a deleted FineTuneJob, because its cleaning is recorded."""
        self._deleted_runs.pop(run.body["metadata"]["uid"], None)

    def forget_old_deleted_runs(self) -> None:
        """Drop those that were noticed long ago: on a standby, the leader has recorded them."""
        limit = time.monotonic() - _DELETED_RUN_SECONDS
        self._deleted_runs = {uid: run for uid, run in self._deleted_runs.items() if run.noticed_at > limit}

    def delete(self, body: Body) -> None:
        """Drop a deleted FineTuneJob, but keep its last state if it may have left checkpoints."""
        super().delete(body)
        self._retain(self._transform_object(body))

    def _drop_lost_object(self, uid: str) -> None:
        self._retain(self._body_by_uid[uid])
        super()._drop_lost_object(uid)

    def _retain(self, body: Body) -> None:
        if may_have_checkpoints(body):
            run = DeletedRun(get_finetunejob_key(body), body, time.monotonic())
            self._deleted_runs[body["metadata"]["uid"]] = run


class PodCache(ObjectCache):
    """Existing pods and, for each unfinished run, the last deleted pod that had ended, by completion index.

    The termination message of a pod may appear only in the event of its deletion.
    """

    def __init__(self, has_ended: Callable[[ObjectKey], bool]) -> None:
        super().__init__(transform.strip_pod, lambda key, pod: is_alive(pod) or not has_ended(key))
        self._has_ended = has_ended
        self._deleted_pods: dict[ObjectKey, dict[str, Body]] = {}

    def list_with_deleted(self, key: ObjectKey) -> list[Body]:
        """Return the pods with this key, deleted ones first."""
        cached_pods = self.list_by_key(key)
        uids = {pod["metadata"]["uid"] for pod in cached_pods}  # a pod that lost its label for a while has come back
        return [
            *(pod for pod in self._deleted_pods.get(key, {}).values() if pod["metadata"]["uid"] not in uids),
            *cached_pods,
        ]

    def list_keys_with_deleted(self) -> list[ObjectKey]:
        """Return the keys of deleted pods that are kept."""
        return list(self._deleted_pods)

    def delete(self, body: Body) -> None:
        """Drop a deleted pod, but keep its final state if it had ended and its run has not."""
        super().delete(body)
        self._retain(self._transform_object(body))

    def _drop_lost_object(self, uid: str) -> None:
        self._retain(self._body_by_uid[uid])
        super()._drop_lost_object(uid)

    def _retain(self, deleted_pod: Body) -> None:
        key = get_owner_key(deleted_pod)
        if not get_finished_at(deleted_pod) or self._has_ended(key):
            return
        pods_by_index, index = self._deleted_pods.setdefault(key, {}), get_completion_index(deleted_pod)
        failed_pod = {
            **deleted_pod,
            "metadata": {"deletionTimestamp": get_finished_at(deleted_pod), **deleted_pod["metadata"]},
            "status": {**deleted_pod["status"], "phase": "Failed"},  # it cannot run any more
        }
        pods_by_index[index] = find_newest_pod([failed_pod, *filter(None, [pods_by_index.get(index)])]) or failed_pod

    def evict(self, key: ObjectKey) -> None:
        """Drop the pods with this key that are no longer needed, and the deleted ones."""
        super().evict(key)
        self._deleted_pods.pop(key, None)


class ReportedProgress(NamedTuple):
    """The last progress that a running pod reported."""

    pod_uid: str
    progress: Progress


class FineTuneJobCache:
    """The informer of FineTuneJobs. Of a finished run, only the FineTuneJob's final state is kept.

    FineTuneJobs that another controller manages are not kept, so that this operator ignores them.
    """

    def __init__(self) -> None:
        self.finetunejobs = FineTuneJobObjects()
        self.jobs = ObjectCache(
            transform.strip_job,
            lambda key, job: holds_scratch_claims(job) or not (is_finished(job) and self.has_ended(key)),
        )
        self.pods = PodCache(self.has_ended)
        self.reported_progress: dict[ObjectKey, ReportedProgress] = {}
        """The last progress that running pods reported."""
        self.unreadable_objects: dict[ObjectKey, str] = {}
        """The uids of FineTuneJobs that this version cannot read."""
        self.foreign_jobs: dict[ObjectKey, str] = {}
        """The uids of the Jobs that other installations of the operator have created, by their FineTuneJobs."""
        self.unreadable_namespaces: Container[str] = frozenset()
        self.resources: Sequence[WatchedResource] = (  # a finished FineTuneJob decides which other objects are needed
            WatchedResource(FINETUNEJOBS, self.finetunejobs, get_finetunejob_key, transform.decode_finetunejob),
            WatchedResource(JOBS, self.jobs, get_owner_key, transform.decode_body),
            WatchedResource(PODS, self.pods, get_owner_key, transform.decode_body),
        )

    def get_finetunejob(self, key: ObjectKey) -> Body | None:
        """Return the newest FineTuneJob of that name. An older one may still be in deletion."""
        return next(reversed(self.finetunejobs.list_by_key(key)), None)

    def get_uid(self, key: ObjectKey) -> str:
        """Return the uid of the FineTuneJob, or an empty string if it is not cached."""
        body = self.get_finetunejob(key)
        return body["metadata"]["uid"] if body else ""

    def get_job(self, body: Body) -> Body | None:
        """Return the Job that this FineTuneJob owns."""
        meta = body["metadata"]
        jobs = self.jobs.list_by_key(get_finetunejob_key(body))
        owned_jobs = (job for job in jobs if is_controlled_by(job, meta["uid"]))
        return next((job for job in owned_jobs if job["metadata"]["name"] == meta["name"]), None)

    def get_last_progress(self, key: ObjectKey, pod: Body | None) -> Progress | None:
        """Return the last progress of exactly this pod."""
        reported = self.reported_progress.get(key)
        return reported.progress if reported and pod and reported.pod_uid == pod["metadata"]["uid"] else None

    def has_ended(self, key: ObjectKey) -> bool:
        """Return whether the FineTuneJob has a terminal condition."""
        body = self.get_finetunejob(key)
        return body is not None and is_finished(body)

    def list_new_keys(self) -> list[ObjectKey]:
        """Return the FineTuneJobs that were never reconciled."""
        return [get_finetunejob_key(body) for body in self.finetunejobs if not body.get("status", {}).get("conditions")]

    def list_active_keys(self) -> list[ObjectKey]:
        """Return the FineTuneJobs that may need work: all except finished ones with nothing left to clean up."""
        keys = [*self.finetunejobs.list_keys(), *self.finetunejobs.list_deleted_keys()]
        return [key for key in keys if key.namespace not in self.unreadable_namespaces and not self._is_cleaned_up(key)]

    def _is_cleaned_up(self, key: ObjectKey) -> bool:
        body = self.get_finetunejob(key)
        if body is None or self.finetunejobs.list_deleted_runs(key):
            return False
        if not is_finished(body) or "ttlSecondsAfterFinished" in body["spec"]:
            return False
        is_current = body["metadata"].get("generation") == body["status"].get("observedGeneration")
        return is_current and not self.jobs.list_by_key(key) and not self.pods.list_by_key(key)

    def evict_run(self, key: ObjectKey) -> None:
        """Drop what is kept of a FineTuneJob that has finished or is deleted."""
        for entries in self._get_entries_by_key():
            entries.pop(key, None)
        self.jobs.evict(key)
        self.pods.evict(key)

    def evict_finished(self) -> None:
        """Drop what is kept of finished and deleted runs whose end was not reconciled by this replica, and of unused
        namespaces."""
        self.finetunejobs.forget_old_deleted_runs()
        counters.remove_unused_namespaces({key.namespace for key in self.finetunejobs.list_keys()}, time.monotonic())
        keys = {*self.pods.list_keys_with_deleted(), *chain.from_iterable(self._get_entries_by_key())}
        for key in keys:
            if self.get_finetunejob(key) is None or self.has_ended(key):
                self.evict_run(key)

    def _get_entries_by_key(self) -> tuple[dict[ObjectKey, Any], ...]:
        return self.reported_progress, self.unreadable_objects, self.foreign_jobs
