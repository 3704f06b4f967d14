"""What the operator last saw of the cluster: fed by the watches, replaced by the periodic list, kept nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from finetune_operator.kube import transform
from finetune_operator.observed import objects
from finetune_operator.resources.job import JOB_LABEL
from finetune_trainer.contract import Progress

Body = dict[str, Any]

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""


def key_of(body: Body) -> Key:
    """The FineTuneJob that an object belongs to: the one that its label names, or itself."""
    meta = body["metadata"]
    return meta["namespace"], meta.get("labels", {}).get(JOB_LABEL, meta["name"])


def name_key(body: Body) -> Key:
    """The key of a FineTuneJob; its labels are its user's."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


def version_of(body: Body) -> int:
    """The resource version as a number; they are comparable by definition since Kubernetes 1.35 (KEP-5504)."""
    version = str(body["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdigit() else 0


class WholeList(NamedTuple):
    """Which objects a whole list contained."""

    uids: set[str]
    version: int
    """Resource version at which it was taken."""


class Shelf:
    """The bodies of one kind of object, by uid and by key: trimmed, and without those that are not needed."""

    def __init__(
        self, trim: Callable[[Body], Body], is_needed: Callable[[Key, Body], bool] = lambda _key, _body: True
    ) -> None:
        self._trim = trim
        self._is_needed = is_needed
        self._bodies: dict[str, Body] = {}
        self._keys: dict[str, Key] = {}
        self._by_key: defaultdict[Key, set[str]] = defaultdict(set)
        self._gone: dict[str, int] = {}
        self._long_gone: dict[str, int] = {}
        self.highest = 0
        """The highest resource version that was ever seen of this kind."""

    def of(self, key: Key) -> list[Body]:
        """What belongs to a key, oldest version first."""
        return sorted((self._bodies[uid] for uid in self._by_key.get(key, ())), key=version_of)

    def all_keys(self) -> list[Key]:
        """All keys that something belongs to."""
        return list(self._by_key)

    def __len__(self) -> int:
        return len(self._bodies)

    def __iter__(self) -> Iterator[Body]:
        return iter(list(self._bodies.values()))

    def put(self, key: Key, body: Body) -> bool:
        """Keep a body unless a newer one is here or the object is gone, for events come late and in any order."""
        return self.offer(key, body, lambda: body)

    def offer(self, key: Key, head: Body, whole: Callable[[], Body]) -> bool:
        """The same, of a body that is read only if it is kept."""
        uid, version = head["metadata"]["uid"], version_of(head)
        self.highest = max(self.highest, version)
        if not self._is_needed(key, head):
            self._drop(uid)  # also one that is known, for what it belongs to may have ended since
            return False
        known, gone = self._bodies.get(uid), self._gone.get(uid, self._long_gone.get(uid))
        if (known and version_of(known) >= version > 0) or (gone is not None and gone >= version):
            return False
        self._drop(uid)  # its label may have changed
        self._bodies[uid] = self._trim(whole())
        self._keys[uid] = key
        self._by_key[key].add(uid)
        return True

    def clear_out(self, key: Key) -> None:
        """Let go what is not needed any more of a key."""
        for body in self.of(key):
            if not self._is_needed(key, body):
                self._drop(body["metadata"]["uid"])

    def remove(self, body: Body) -> None:
        """Forget a deleted object; no late event or list of before can revive it. One that only lost the label by
        which we look for it is newer when it comes back."""
        self._gone[body["metadata"]["uid"]] = version_of(body)
        self._drop(body["metadata"]["uid"])

    def keep_only(self, lists: Mapping[str | None, WholeList]) -> None:
        """Drop what whole lists lack, each list of one namespace or, under None, of all; what is newer stays."""
        for uid, key in list(self._keys.items()):
            whole = lists.get(key[0]) or lists.get(None)
            if whole and uid not in whole.uids and version_of(self._bodies[uid]) <= whole.version:
                self._drop(uid)
        self.highest = max(self.highest, *(each.version for each in lists.values()))
        self._gone, self._long_gone = {}, self._gone

    def drop_namespace(self, namespace: str) -> None:
        """Forget everything in a namespace that does not exist any more."""
        for uid in [uid for uid, key in self._keys.items() if key[0] == namespace]:
            self._drop(uid)

    def clear(self) -> None:
        """Forget everything, also which objects were deleted."""
        for uid in list(self._bodies):
            self._drop(uid)
        self._gone, self._long_gone, self.highest = {}, {}, 0

    def _drop(self, uid: str) -> None:
        self._bodies.pop(uid, None)
        key = self._keys.pop(uid, None)
        if key:
            self._by_key[key].discard(uid)
            if not self._by_key[key]:
                del self._by_key[key]


class Pods(Shelf):
    """Those that are there, and of each open run the last ones, by index, that have ended and are gone.

    Their last words may stand in no other events than those of their deletion.
    """

    def __init__(self, has_ended: Callable[[Key], bool]) -> None:
        super().__init__(transform.pod, lambda key, pod: objects.is_alive(pod) or not has_ended(key))
        self._has_ended = has_ended
        self._left: dict[Key, dict[str, Body]] = {}

    def with_left(self, key: Key) -> list[Body]:
        """What belongs to a key, with those that are gone."""
        here = self.of(key)
        uids = {pod["metadata"]["uid"] for pod in here}  # one that only lost our label for a while is here again
        return [*(pod for pod in self._left.get(key, {}).values() if pod["metadata"]["uid"] not in uids), *here]

    def left_keys(self) -> list[Key]:
        """Keys of which some are kept that are gone."""
        return list(self._left)

    def remove(self, body: Body) -> None:
        """Forget a deleted pod, unless it has said its last word."""
        super().remove(body)
        key = key_of(body)
        if objects.finished_at(body) and not self._has_ended(key):
            self._keep(key, self._trim(body))

    def _keep(self, key: Key, gone: Body) -> None:
        left, index = self._left.setdefault(key, {}), objects.index(gone)
        ended = {**gone, "status": {**gone["status"], "phase": "Failed"}}  # it cannot run any more
        left[index] = objects.newest([ended, *filter(None, [left.get(index)])]) or ended

    def clear_out(self, key: Key) -> None:
        """Also those that are gone."""
        super().clear_out(key)
        self._left.pop(key, None)


class Heard(NamedTuple):
    """What a pod last said of itself."""

    pod: str
    """Its uid."""
    progress: Progress


class Store:
    """All shelves. Of a run that has ended, with all that belongs to it, nothing but the end is kept."""

    def __init__(self) -> None:
        self.finetunejobs = Shelf(transform.finetunejob)
        self.jobs = Shelf(transform.job, lambda key, job: not (objects.has_ended(job) and self.has_ended(key)))
        self.pods = Pods(self.has_ended)
        self.progress: dict[Key, Heard] = {}
        """What running pods last said of themselves."""
        self.unreadable: set[str] = set()
        """Namespaces of which the store may be out of date, because they cannot be read now: no work is done there."""

    def finetunejob(self, key: Key) -> Body | None:
        """The newest of that name; one that is being deleted may be there beside it."""
        return next(reversed(self.finetunejobs.of(key)), None)

    def job(self, body: Body) -> Body | None:
        """The Job that this FineTuneJob made."""
        meta = body["metadata"]
        found = (job for job in self.jobs.of(name_key(body)) if objects.is_owned_by(job, meta["uid"]))
        return next((job for job in found if job["metadata"]["name"] == meta["name"]), None)

    def has_ended(self, key: Key) -> bool:
        """Whether the FineTuneJob has a terminal condition."""
        body = self.finetunejob(key)
        return body is not None and objects.has_ended(body)

    def open_keys(self) -> list[Key]:
        """FineTuneJobs that may need something: all but those that have ended for good and left nothing to clear up."""
        keys = self.finetunejobs.all_keys()
        return [key for key in keys if key[0] not in self.unreadable and not self._is_closed(key)]

    def _is_closed(self, key: Key) -> bool:
        body = self.finetunejob(key)
        if body is None or not objects.has_ended(body) or "ttlSecondsAfterFinished" in body["spec"]:
            return False
        current = body["metadata"].get("generation") == body["status"].get("observedGeneration")
        return current and not self.jobs.of(key) and not self.pods.of(key)

    def forget_run(self, key: Key) -> None:
        """A FineTuneJob has ended or is gone: let go what nobody will ask for."""
        self.progress.pop(key, None)
        self.jobs.clear_out(key)
        self.pods.clear_out(key)

    def forget_gone(self) -> None:
        """Let go what is kept of runs that are over, though no event told so, or none to this replica's workers."""
        for key in [*self.progress, *self.pods.left_keys()]:
            if self.finetunejob(key) is None or self.has_ended(key):
                self.forget_run(key)

    def heard(self, key: Key, pod: Body | None) -> Progress | None:
        """What this pod, and none before it, last said."""
        said = self.progress.get(key)
        return said.progress if said and pod and said.pod == pod["metadata"]["uid"] else None
