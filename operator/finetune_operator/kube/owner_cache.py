"""Cache of the objects of a kind that owns FineTuneJobs, and of these FineTuneJobs."""

from __future__ import annotations

from collections.abc import Container, Sequence

from finetune_operator.api import GROUP
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.kube import transform
from finetune_operator.kube.cache import ObjectCache
from finetune_operator.kube.client import FINETUNEJOBS, ApiResource
from finetune_operator.kube.informer import WatchedResource
from finetune_operator.observed.objects import get_controller_ref, get_name, is_controlled_by


class OwnerCache:
    """The informer of FineTuneSchedules or of FineTuneSweeps."""

    def __init__(self, kind: str, resource: ApiResource) -> None:
        self._kind = kind
        self.owners = ObjectCache(transform.strip_owner)
        self.children = ObjectCache(transform.strip_child, lambda key, _body: bool(key.name))
        """The FineTuneJobs by the key of their owner."""
        self.unreadable_namespaces: Container[str] = frozenset()
        self.resources: Sequence[WatchedResource] = (
            WatchedResource(resource, self.owners, self.get_key, transform.decode_body, is_optional=True),
            WatchedResource(FINETUNEJOBS, self.children, self.get_owner_key, transform.decode_body),
        )

    def get_key(self, body: Body) -> ObjectKey:
        """Return the key of an owner."""
        return ObjectKey(self._kind, body["metadata"]["namespace"], get_name(body))

    def get_owner_key(self, body: Body) -> ObjectKey:
        """Return the key of the owner of a FineTuneJob. Its name is empty for a FineTuneJob without such an owner."""
        owner = get_controller_ref(body)
        is_owned = (str(owner.get("apiVersion", "")).partition("/")[0], owner.get("kind")) == (GROUP, self._kind)
        return ObjectKey(self._kind, body["metadata"]["namespace"], str(owner["name"]) if is_owned else "")

    def get_owner(self, key: ObjectKey) -> Body | None:
        """Return the newest object of that name. An older one may still be in deletion."""
        return next(reversed(self.owners.list_by_key(key)), None)

    def list_children(self, owner: Body) -> list[Body]:
        """Return the FineTuneJobs that this object owns, by name."""
        children = self.children.list_by_key(self.get_key(owner))
        owned = (child for child in children if is_controlled_by(child, owner["metadata"]["uid"]))
        return sorted(owned, key=get_name)

    def get_uid(self, key: ObjectKey) -> str:
        """Return the uid of the object, or an empty string if it is not cached."""
        body = self.get_owner(key)
        return str(body["metadata"]["uid"]) if body else ""

    def list_new_keys(self) -> list[ObjectKey]:
        """Return the objects that were never reconciled."""
        return [self.get_key(body) for body in self.owners if not body["status"].get("conditions")]

    def list_active_keys(self) -> list[ObjectKey]:
        """Return all objects: those that have ended need little work."""
        return [key for key in self.owners.list_keys() if key.namespace not in self.unreadable_namespaces]

    def evict_finished(self) -> None:
        """Keep everything: history limits bound what an object owns."""
