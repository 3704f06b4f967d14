"""Cache of the objects of one resource, as client-go's `cache.Store`. It is never persisted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from finetune_operator.api.objects import Body, ObjectKey


def get_resource_version(body: Body) -> int:
    """Return the resource version as a number. By KEP-5504 (Kubernetes 1.35) resource versions can be compared."""
    return parse_resource_version(str(body["metadata"].get("resourceVersion", "")))


def parse_resource_version(version: str) -> int:
    """Return the resource version as a number, 0 if it is unknown."""
    return int(version) if version.isdigit() else 0


class ListSnapshot(NamedTuple):
    """Which objects a complete list contained."""

    uids: set[str]
    resource_version: int
    """Resource version of the list."""


class ObjectCache:
    """Stripped objects by uid and by key, without those that are not needed.

    The key of an object is the one that is reconciled when it changes: its own, or that of its owner.
    """

    def __init__(
        self,
        transform_object: Callable[[Body], Body],
        is_needed: Callable[[ObjectKey, Body], bool] = lambda _key, _body: True,
    ) -> None:
        self._transform_object = transform_object
        self._is_needed = is_needed
        self._body_by_uid: dict[str, Body] = {}
        self._key_by_uid: dict[str, ObjectKey] = {}
        self._uids_by_key: defaultdict[ObjectKey, set[str]] = defaultdict(set)
        self._tombstones: dict[str, int] = {}
        self._older_tombstones: dict[str, int] = {}
        self.highest_version = 0
        """The highest resource version that was seen of this resource."""

    def list_by_key(self, key: ObjectKey) -> list[Body]:
        """Return the objects with this key, the oldest version first."""
        return sorted((self._body_by_uid[uid] for uid in self._uids_by_key.get(key, ())), key=get_resource_version)

    def list_keys(self) -> list[ObjectKey]:
        """Return the keys of all objects."""
        return list(self._uids_by_key)

    def __len__(self) -> int:
        return len(self._body_by_uid)

    def __iter__(self) -> Iterator[Body]:
        return iter(list(self._body_by_uid.values()))

    def update(self, key: ObjectKey, body: Body) -> bool:
        """Add or replace an object. Return False if a newer version is cached or the object is deleted.

        Events and responses may arrive late and in any order.
        """
        return self.add_if_newer(key, body, lambda: body)

    def add_if_newer(self, key: ObjectKey, head: Body, decode_body: Callable[[], Body]) -> bool:
        """Do the same as `update` for an object that is decoded only if it is cached."""
        uid, version = head["metadata"]["uid"], get_resource_version(head)
        self.highest_version = max(self.highest_version, version)
        if not self._is_needed(key, head):
            self._drop_object(uid)  # it may be cached, because its run has finished since
            return False
        cached = self._body_by_uid.get(uid)
        if cached and get_resource_version(cached) >= version > 0:
            return False
        tombstone_version = self._tombstones.get(uid, self._older_tombstones.get(uid))
        if tombstone_version is not None and tombstone_version >= version:
            return False
        self._drop_object(uid)  # its label may have changed, and with it its key
        self._body_by_uid[uid] = self._transform_object(decode_body())
        self._key_by_uid[uid] = key
        self._uids_by_key[key].add(uid)
        return True

    def evict(self, key: ObjectKey) -> None:
        """Drop the objects with this key that are no longer needed."""
        for body in self.list_by_key(key):
            if not self._is_needed(key, body):
                self._drop_object(body["metadata"]["uid"])

    def delete(self, body: Body) -> None:
        """Drop a deleted object. Its tombstone prevents late events and older lists from adding it again.

        An object that only lost the selected label has a newer version when it comes back.
        """
        self._tombstones[body["metadata"]["uid"]] = get_resource_version(body)
        self._drop_object(body["metadata"]["uid"])

    def replace(self, lists: Mapping[str | None, ListSnapshot]) -> None:
        """Drop the objects that complete lists do not contain, unless they are newer than the list.

        Each list is of one namespace or, under None, of the cluster. A tombstone is kept for two lists.
        """
        for uid, key in list(self._key_by_uid.items()):
            namespace_list = lists.get(key.namespace) or lists.get(None)
            if (
                namespace_list
                and uid not in namespace_list.uids
                and get_resource_version(self._body_by_uid[uid]) <= namespace_list.resource_version
            ):
                self._drop_lost_object(uid)
        self.highest_version = max(self.highest_version, *(snapshot.resource_version for snapshot in lists.values()))
        self._tombstones, self._older_tombstones = {}, self._tombstones

    def drop_namespace(self, namespace: str) -> None:
        """Drop all objects of a namespace that no longer exists."""
        for uid in [uid for uid, key in self._key_by_uid.items() if key.namespace == namespace]:
            self._drop_object(uid)

    def clear(self) -> None:
        """Drop all objects and tombstones."""
        for uid in list(self._body_by_uid):
            self._drop_object(uid)
        self._tombstones, self._older_tombstones, self.highest_version = {}, {}, 0

    def _drop_lost_object(self, uid: str) -> None:
        """Drop an object whose deletion no watch has reported."""
        self._drop_object(uid)

    def _drop_object(self, uid: str) -> None:
        self._body_by_uid.pop(uid, None)
        key = self._key_by_uid.pop(uid, None)
        if key:
            self._uids_by_key[key].discard(uid)
            if not self._uids_by_key[key]:
                del self._uids_by_key[key]
