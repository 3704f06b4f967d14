"""What the operator last saw of the cluster: fed by the watches, replaced by the periodic list, kept nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from finetune_operator.api.labels import JOB_LABEL
from finetune_operator.api.objects import Body
from finetune_operator.kube import transform
from finetune_operator.observed.objects import is_controlled_by, is_finished
from finetune_operator.observed.pod import find_newest_pod, get_completion_index, get_finished_at, is_alive
from finetune_trainer.contract import Progress

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""


def get_owner_key(body: Body) -> Key:
    """The FineTuneJob that an object belongs to: the one that its label names, or itself."""
    meta = body["metadata"]
    return meta["namespace"], meta.get("labels", {}).get(JOB_LABEL, meta["name"])


def get_object_key(body: Body) -> Key:
    """The key of a FineTuneJob; its labels are its user's."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


def get_resource_version(body: Body) -> int:
    """The resource version as a number; they are comparable by definition since Kubernetes 1.35 (KEP-5504)."""
    version = str(body["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdigit() else 0


class ListSnapshot(NamedTuple):
    """Which objects a whole list contained."""

    uids: set[str]
    resource_version: int
    """Resource version at which it was taken."""


class ObjectCache:
    """The bodies of one kind of object, by uid and by key: trimmed, and without those that are not needed."""

    def __init__(
        self,
        transform_object: Callable[[Body], Body],
        is_needed: Callable[[Key, Body], bool] = lambda _key, _body: True,
    ) -> None:
        self._transform_object = transform_object
        self._is_needed = is_needed
        self._body_by_uid: dict[str, Body] = {}
        self._key_by_uid: dict[str, Key] = {}
        self._uids_by_key: defaultdict[Key, set[str]] = defaultdict(set)
        self._tombstones: dict[str, int] = {}
        self._older_tombstones: dict[str, int] = {}
        self.highest_version = 0
        """The highest resource version that was ever seen of this kind."""

    def list_by_key(self, key: Key) -> list[Body]:
        """What belongs to a key, oldest version first."""
        return sorted((self._body_by_uid[uid] for uid in self._uids_by_key.get(key, ())), key=get_resource_version)

    def list_keys(self) -> list[Key]:
        """All keys that something belongs to."""
        return list(self._uids_by_key)

    def __len__(self) -> int:
        return len(self._body_by_uid)

    def __iter__(self) -> Iterator[Body]:
        return iter(list(self._body_by_uid.values()))

    def update(self, key: Key, body: Body) -> bool:
        """Keep a body unless a newer one is here or the object is gone, for events come late and in any order."""
        return self.add_if_newer(key, body, lambda: body)

    def add_if_newer(self, key: Key, head: Body, decode_body: Callable[[], Body]) -> bool:
        """The same, of a body that is read only if it is kept."""
        uid, version = head["metadata"]["uid"], get_resource_version(head)
        self.highest_version = max(self.highest_version, version)
        if not self._is_needed(key, head):
            self._drop_object(uid)  # also one that is known, for what it belongs to may have ended since
            return False
        cached, tombstone_version = (
            self._body_by_uid.get(uid),
            self._tombstones.get(uid, self._older_tombstones.get(uid)),
        )
        if (cached and get_resource_version(cached) >= version > 0) or (
            tombstone_version is not None and tombstone_version >= version
        ):
            return False
        self._drop_object(uid)  # its label may have changed
        self._body_by_uid[uid] = self._transform_object(decode_body())
        self._key_by_uid[uid] = key
        self._uids_by_key[key].add(uid)
        return True

    def evict(self, key: Key) -> None:
        """Let go what is not needed any more of a key."""
        for body in self.list_by_key(key):
            if not self._is_needed(key, body):
                self._drop_object(body["metadata"]["uid"])

    def delete(self, body: Body) -> None:
        """Forget a deleted object; no late event or list of before can revive it. One that only lost the label by
        which we look for it is newer when it comes back."""
        self._tombstones[body["metadata"]["uid"]] = get_resource_version(body)
        self._drop_object(body["metadata"]["uid"])

    def replace(self, lists: Mapping[str | None, ListSnapshot]) -> None:
        """Drop what whole lists lack, each list of one namespace or, under None, of all; what is newer stays."""
        for uid, key in list(self._key_by_uid.items()):
            namespace_list = lists.get(key[0]) or lists.get(None)
            if (
                namespace_list
                and uid not in namespace_list.uids
                and get_resource_version(self._body_by_uid[uid]) <= namespace_list.resource_version
            ):
                self._drop_object(uid)
        self.highest_version = max(self.highest_version, *(snapshot.resource_version for snapshot in lists.values()))
        self._tombstones, self._older_tombstones = {}, self._tombstones

    def drop_namespace(self, namespace: str) -> None:
        """Forget everything in a namespace that does not exist any more."""
        for uid in [uid for uid, key in self._key_by_uid.items() if key[0] == namespace]:
            self._drop_object(uid)

    def clear(self) -> None:
        """Forget everything, also which objects were deleted."""
        for uid in list(self._body_by_uid):
            self._drop_object(uid)
        self._tombstones, self._older_tombstones, self.highest_version = {}, {}, 0

    def _drop_object(self, uid: str) -> None:
        self._body_by_uid.pop(uid, None)
        key = self._key_by_uid.pop(uid, None)
        if key:
            self._uids_by_key[key].discard(uid)
            if not self._uids_by_key[key]:
                del self._uids_by_key[key]


class PodCache(ObjectCache):
    """Those that are there, and of each open run the last ones, by index, that have ended and are gone.

    Their last words may stand in no other events than those of their deletion.
    """

    def __init__(self, has_ended: Callable[[Key], bool]) -> None:
        super().__init__(transform.strip_pod, lambda key, pod: is_alive(pod) or not has_ended(key))
        self._has_ended = has_ended
        self._deleted_pods: dict[Key, dict[str, Body]] = {}

    def list_with_deleted(self, key: Key) -> list[Body]:
        """What belongs to a key, with those that are gone."""
        cached_pods = self.list_by_key(key)
        uids = {pod["metadata"]["uid"] for pod in cached_pods}  # one that only lost our label for a while is here again
        return [
            *(pod for pod in self._deleted_pods.get(key, {}).values() if pod["metadata"]["uid"] not in uids),
            *cached_pods,
        ]

    def list_keys_with_deleted(self) -> list[Key]:
        """Keys of which some are kept that are gone."""
        return list(self._deleted_pods)

    def delete(self, body: Body) -> None:
        """Forget a deleted pod, unless it has said its last word."""
        super().delete(body)
        key = get_owner_key(body)
        if get_finished_at(body) and not self._has_ended(key):
            self._retain_deleted_pod(key, self._transform_object(body))

    def _retain_deleted_pod(self, key: Key, deleted_pod: Body) -> None:
        pods_by_index, index = self._deleted_pods.setdefault(key, {}), get_completion_index(deleted_pod)
        failed_pod = {**deleted_pod, "status": {**deleted_pod["status"], "phase": "Failed"}}  # it cannot run any more
        pods_by_index[index] = find_newest_pod([failed_pod, *filter(None, [pods_by_index.get(index)])]) or failed_pod

    def evict(self, key: Key) -> None:
        """Also those that are gone."""
        super().evict(key)
        self._deleted_pods.pop(key, None)


class ReportedProgress(NamedTuple):
    """What a pod last said of itself."""

    pod_uid: str
    """Its uid."""
    progress: Progress


class InformerCache:
    """All shelves. Of a run that has ended, with all that belongs to it, nothing but the end is kept."""

    def __init__(self) -> None:
        self.finetunejobs = ObjectCache(transform.strip_finetunejob)
        self.jobs = ObjectCache(transform.strip_job, lambda key, job: not (is_finished(job) and self.has_ended(key)))
        self.pods = PodCache(self.has_ended)
        self.reported_progress: dict[Key, ReportedProgress] = {}
        """What running pods last said of themselves."""
        self.unreadable_namespaces: set[str] = set()
        """Namespaces of which the store may be out of date, because they cannot be read now: no work is done there."""

    def get_finetunejob(self, key: Key) -> Body | None:
        """The newest of that name; one that is being deleted may be there beside it."""
        return next(reversed(self.finetunejobs.list_by_key(key)), None)

    def get_job(self, body: Body) -> Body | None:
        """The Job that this FineTuneJob made."""
        meta = body["metadata"]
        owned_jobs = (job for job in self.jobs.list_by_key(get_object_key(body)) if is_controlled_by(job, meta["uid"]))
        return next((job for job in owned_jobs if job["metadata"]["name"] == meta["name"]), None)

    def has_ended(self, key: Key) -> bool:
        """Whether the FineTuneJob has a terminal condition."""
        body = self.get_finetunejob(key)
        return body is not None and is_finished(body)

    def list_active_keys(self) -> list[Key]:
        """FineTuneJobs that may need something: all but those that have ended for good and left nothing to clear up."""
        keys = self.finetunejobs.list_keys()
        return [key for key in keys if key[0] not in self.unreadable_namespaces and not self._is_cleaned_up(key)]

    def _is_cleaned_up(self, key: Key) -> bool:
        body = self.get_finetunejob(key)
        if body is None or not is_finished(body) or "ttlSecondsAfterFinished" in body["spec"]:
            return False
        is_current = body["metadata"].get("generation") == body["status"].get("observedGeneration")
        return is_current and not self.jobs.list_by_key(key) and not self.pods.list_by_key(key)

    def evict_run(self, key: Key) -> None:
        """A FineTuneJob has ended or is gone: let go what nobody will ask for."""
        self.reported_progress.pop(key, None)
        self.jobs.evict(key)
        self.pods.evict(key)

    def evict_finished_runs(self) -> None:
        """Let go what is kept of runs that are over, though no event told so, or none to this replica's workers."""
        for key in [*self.reported_progress, *self.pods.list_keys_with_deleted()]:
            if self.get_finetunejob(key) is None or self.has_ended(key):
                self.evict_run(key)

    def get_last_progress(self, key: Key, pod: Body | None) -> Progress | None:
        """What this pod, and none before it, last said."""
        reported = self.reported_progress.get(key)
        return reported.progress if reported and pod and reported.pod_uid == pod["metadata"]["uid"] else None
