"""Fill the caches with complete lists, each of one resource in one namespace, so that errors stay local to one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from finetune_operator.kube import transform
from finetune_operator.kube.cache import ListSnapshot
from finetune_operator.kube.client import KubeClient, ObjectList
from finetune_operator.kube.informer import Informer, WatchedResource
from finetune_operator.kube.namespace_access import NamespaceRegistry, Scope, UnreadableNamespaces
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError

log = logging.getLogger(__name__)

_MAX_PARALLEL_LISTS = 8
"""Namespaces that are listed at the same time, so that one without a response does not delay all others."""

ListResponses = Sequence[ObjectList | BaseException]
"""Lists and errors of one namespace, in the order of the watched resources."""


class Lister:
    """Lists namespaces into the caches of all informers, and records which namespaces can be read."""

    def __init__(self, client: KubeClient, namespaces: NamespaceRegistry) -> None:
        self._client = client
        self._namespaces = namespaces
        self._informers: list[Informer] = []
        self._resources: list[WatchedResource] = []
        self._list_slots = asyncio.Semaphore(_MAX_PARALLEL_LISTS)
        self._refresh_lock = asyncio.Lock()
        """Prevents concurrent refreshes: a tombstone is kept for two lists, which covers the one in progress."""

    def add_informer(self, informer: Informer) -> None:
        """List the resources of this informer too."""
        informer.unreadable_namespaces = UnreadableNamespaces(self._namespaces)
        self._informers.append(informer)
        self._resources.extend(informer.resources)

    async def refresh(self, scopes: Collection[Scope]) -> set[Scope]:
        """List these namespaces into the caches. Return those that could be listed."""
        async with self._refresh_lock:
            previous_versions = [resource.cache.highest_version for resource in self._resources]
            responses_by_scope = dict(zip(scopes, await asyncio.gather(*map(self._fetch_lists, scopes)), strict=True))
            lists = {
                scope: object_lists
                for scope, responses in responses_by_scope.items()
                if (object_lists := self._check_responses(scope, responses))
            }
            if lists:
                self._replace_namespaces(lists, previous_versions)
            for informer in self._informers:
                informer.evict_finished()
            return set(lists)

    def drop_unwatched(self) -> None:
        """Drop the objects of namespaces that are no longer watched. Late responses may have added some again."""
        for watched in self._resources:
            for name in {key.namespace for key in watched.cache.list_keys()}:
                if not self._namespaces.is_watched(name):
                    watched.cache.drop_namespace(name)
        for informer in self._informers:
            informer.evict_finished()

    async def _fetch_lists(self, scope: Scope) -> ListResponses:
        async with self._list_slots:
            requests = (self._client.list_objects(watched.resource, scope) for watched in self._resources)
            responses = await asyncio.gather(*requests, return_exceptions=True)
        for response in responses:
            if isinstance(response, BaseException) and not isinstance(response, (ApiError, *CONNECTION_ERRORS)):
                raise response
        return responses

    def _check_responses(self, scope: Scope, responses: ListResponses) -> list[ObjectList] | None:
        """Return the lists if all of them succeeded. Otherwise record why the namespace could not be listed."""
        errors = [response for response in responses if isinstance(response, Exception)]
        if not errors:
            self._namespaces.record_list(scope)
            return [each for each in responses if isinstance(each, ObjectList)]
        access_error = _find_access_error(responses)
        if scope is None or access_error is None:
            self._namespaces.record_failure(scope, errors[0])
            return None
        self._namespaces.record_unreadable(scope, access_error)
        if access_error.status == 404:
            for watched in self._resources:
                watched.cache.drop_namespace(scope)
        return None

    def _replace_namespaces(
        self, lists: Mapping[Scope, Sequence[ObjectList]], previous_versions: Sequence[int]
    ) -> None:
        """Replace the cached objects of these namespaces.

        `previous_versions` are the highest resource versions of each resource before the lists were requested.
        """
        if any(
            0 < listed.resource_version < previous_version
            for object_lists in lists.values()
            for listed, previous_version in zip(object_lists, previous_versions, strict=True)
        ):
            self._clear_after_restore()
        for index, watched in enumerate(self._resources):
            _replace_resource(watched, {scope: object_lists[index] for scope, object_lists in lists.items()})

    def _clear_after_restore(self) -> None:
        """Clear all caches. A complete list is of the newest version, so a version that is lower than before means
        that etcd was restored from a backup: https://github.com/kubernetes/kubernetes/issues/107457."""
        log.warning("resource versions decreased, as after a restore of etcd: replacing all cached objects")
        for watched in self._resources:
            watched.cache.clear()


def _replace_resource(watched: WatchedResource, lists: Mapping[Scope, ObjectList]) -> None:
    snapshots = dict[Scope, ListSnapshot]()
    for scope, listed in lists.items():
        uids = set[str]()
        for raw in listed.items:
            head = transform.decode_head(raw)
            watched.cache.add_if_newer(watched.get_key(head), head, partial(watched.decode, raw, head))
            uids.add(head["metadata"]["uid"])
        snapshots[scope] = ListSnapshot(uids, listed.resource_version)
    watched.cache.replace(snapshots)


def _find_access_error(responses: ListResponses) -> ApiError | None:
    """Return the error which shows that the namespace itself cannot be read: 404 of all resources, or 403 of any.

    404 of FineTuneJobs alone means that the CRD is not installed.
    """
    errors = [response for response in responses if isinstance(response, ApiError)]
    not_found = [error for error in errors if error.status == 404]
    if len(not_found) == len(responses):
        return not_found[0]
    return next((error for error in errors if error.status == 403), None)
