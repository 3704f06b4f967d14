"""What the operator last saw of the cluster: fed by the watches, replaced by the periodic list, kept nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from finetune_operator.resources import JOB_LABEL
from finetune_trainer.contract import Progress

Body = dict[str, Any]
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_JOB_FIELDS = frozenset({"suspend", "backoffLimit", "activeDeadlineSeconds"})
_POD_FIELDS = frozenset({"nodeName", "hostNetwork"})

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


class Shelf:
    """The bodies of one kind of object, by uid and by key; of their specs only some fields, if these are named.

    A finished run's Job and pod lie in the cluster as long as it does: whole, they would take most of the memory.
    """

    def __init__(self, spec_fields: frozenset[str] | None = None) -> None:
        self._spec_fields = spec_fields
        self._bodies: dict[str, Body] = {}
        self._keys: dict[str, Key] = {}
        self._by_key: defaultdict[Key, set[str]] = defaultdict(set)
        self._gone: set[str] = set()
        self._long_gone: set[str] = set()

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
        uid = body["metadata"]["uid"]
        known = self._bodies.get(uid)
        if uid in self._gone | self._long_gone or (known and version_of(known) >= version_of(body) > 0):
            return False
        self._drop(uid)  # its label may have changed
        self._trim(body)
        self._bodies[uid] = body
        self._keys[uid] = key
        self._by_key[key].add(uid)
        return True

    def _trim(self, body: Body) -> None:
        """Take from a body what is never read."""
        body["metadata"].pop("managedFields", None)
        body["metadata"].get("annotations", {}).pop(_LAST_APPLIED, None)
        if self._spec_fields is not None:
            body["spec"] = {key: value for key, value in body.get("spec", {}).items() if key in self._spec_fields}

    def remove(self, body: Body) -> None:
        """Forget a deleted object; uids never come back, so a late event or list cannot revive it."""
        self._gone.add(body["metadata"]["uid"])
        self._drop(body["metadata"]["uid"])

    def replace(self, bodies: Iterable[tuple[Key, Body]], version: int) -> None:
        """Make it equal to a list that was taken at `version`; what is newer than the list stays."""
        listed = {body["metadata"]["uid"]: (key, body) for key, body in bodies}
        for uid in [uid for uid, body in self._bodies.items() if uid not in listed and version_of(body) <= version]:
            self._drop(uid)
        for key, body in listed.values():
            self.put(key, body)
        self._gone, self._long_gone = set(), self._gone

    def _drop(self, uid: str) -> None:
        self._bodies.pop(uid, None)
        key = self._keys.pop(uid, None)
        if key:
            self._by_key[key].discard(uid)
            if not self._by_key[key]:
                del self._by_key[key]


class Heard(NamedTuple):
    """What a pod last said of itself."""

    pod: str
    """Its uid."""
    progress: Progress


class Store:
    """All shelves."""

    def __init__(self) -> None:
        self.finetunejobs = Shelf()
        self.jobs = Shelf(_JOB_FIELDS)
        self.pods = Shelf(_POD_FIELDS)
        self.progress: dict[Key, Heard] = {}
        """What running pods last said of themselves."""

    def heard(self, key: Key, pod: Body | None) -> Progress | None:
        """What this pod, and none before it, last said."""
        said = self.progress.get(key)
        return said.progress if said and pod and said.pod == pod["metadata"]["uid"] else None
