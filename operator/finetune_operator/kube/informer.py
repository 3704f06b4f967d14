"""The interface of a cache that watches and lists keep up to date."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import NamedTuple, Protocol

import msgspec

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.kube.cache import ObjectCache
from finetune_operator.kube.client import ApiResource


class WatchedResource(NamedTuple):
    """A resource that is watched and listed, and the cache of its objects."""

    resource: ApiResource
    cache: ObjectCache
    get_key: Callable[[Body], ObjectKey]
    """Returns the key that is reconciled when an object changes. If its name is empty, the object does not concern this
    informer."""
    decode: Callable[[msgspec.Raw, Body], Body]
    """Decodes an object of a list whose head is known."""
    is_optional: bool = False
    """Whether the other resources are read even if the CRD of this one is not installed, or the permission to read it
    is missing, as after an upgrade of the operator alone."""


class Informer(Protocol):
    """The objects in memory that a controller reads: those of its kind and those that they own."""

    unreadable_namespaces: Container[str]
    """Namespaces that the operator cannot read or does not watch now. Their objects may be outdated, so they are not
    reconciled."""

    @property
    def resources(self) -> Sequence[WatchedResource]:
        """The watched resources, owners before the objects that they own."""

    def list_new_keys(self) -> list[ObjectKey]:
        """Return the objects that were never reconciled."""

    def list_active_keys(self) -> list[ObjectKey]:
        """Return the objects that may need work."""

    def get_uid(self, key: ObjectKey) -> str:
        """Return the object's uid, or an empty string if it is not in the cache."""

    def evict_finished(self) -> None:
        """Drop what is kept of objects that are finished or deleted."""
