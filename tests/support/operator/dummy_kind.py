"""A second kind for the manager: an informer of any resource, and a reconciler that records its calls."""

from __future__ import annotations

from collections.abc import Container, Sequence

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.kube.cache import ObjectCache
from finetune_operator.kube.client import ApiResource
from finetune_operator.kube.informer import WatchedResource
from finetune_operator.kube.transform import decode_body

DUMMY_KIND = "Dummy"


def get_dummy_key(body: Body) -> ObjectKey:
    """Return the key of an object of the dummy kind."""
    return ObjectKey(DUMMY_KIND, body["metadata"]["namespace"], body["metadata"]["name"])


class DummyInformer:
    """The cache of one resource."""

    def __init__(self, resource: ApiResource) -> None:
        self.cache = ObjectCache(lambda body: body)
        self.unreadable_namespaces: Container[str] = frozenset()
        self.resources: Sequence[WatchedResource] = (WatchedResource(resource, self.cache, get_dummy_key, decode_body),)

    def list_new_keys(self) -> list[ObjectKey]:
        return []

    def list_active_keys(self) -> list[ObjectKey]:
        return self.cache.list_keys()

    def get_uid(self, key: ObjectKey) -> str:
        return "uid"

    def evict_finished(self) -> None:
        pass


class CountingReconciler:
    """Records the keys that it is called with."""

    def __init__(self) -> None:
        self.keys: list[ObjectKey] = []

    async def reconcile(self, key: ObjectKey) -> float | None:
        self.keys.append(key)
        return None
