"""Fill the caches with complete lists, each of one resource in one namespace, so that errors stay local to one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from finetune_operator.kube import transform
from finetune_operator.kube.cache import ListSnapshot
from finetune_operator.kube.client import ApiResource, KubeClient, ObjectList
from finetune_operator.kube.informer import Informer, WatchedResource
from finetune_operator.kube.namespace_access import NamespaceRegistry, Scope, UnreadableNamespaces
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError

log = logging.getLogger(__name__)

_MAX_PARALLEL_LISTS = 8
"""Namespaces that are listed at the same time, so that one without a response does not delay all others."""

ListResponses = Mapping[ApiResource, ObjectList | BaseException]
"""Lists and errors of one namespace."""
NamespaceLists = Mapping[ApiResource, ObjectList]
"""Lists of one namespace. Optional resources may be missing."""


class Lister:
    """Lists namespaces into the caches of all informers, and records which namespaces can be read."""

    def __init__(self, client: KubeClient, namespaces: NamespaceRegistry) -> None:
        self._client = client
        self._namespaces = namespaces
        self._informers: list[Informer] = []
        self._resources: list[WatchedResource] = []
        """The watched resources of all informers. Several informers may watch the same resource, which is listed
        once."""
        self._missing_resources: dict[Scope, frozenset[ApiResource]] = {}
        """Optional resources that could not be read at the last list of a namespace, which is logged."""
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
        resources = list(dict.fromkeys(watched.resource for watched in self._resources))
        async with self._list_slots:
            requests = (self._client.list_objects(resource, scope) for resource in resources)
            responses = await asyncio.gather(*requests, return_exceptions=True)
        for response in responses:
            if isinstance(response, BaseException) and not isinstance(response, (ApiError, *CONNECTION_ERRORS)):
                raise response
        return dict(zip(resources, responses, strict=True))

    def _check_responses(self, scope: Scope, responses: ListResponses) -> NamespaceLists | None:
        """Return the lists if all of them succeeded. Otherwise record why the namespace could not be listed."""
        missing = self._find_missing_resources(responses)
        required = {resource: each for resource, each in responses.items() if resource not in missing}
        errors = [response for response in required.values() if isinstance(response, Exception)]
        if not errors:
            self._namespaces.record_list(scope)
            self._record_missing_resources(scope, missing)
            return {resource: each for resource, each in required.items() if isinstance(each, ObjectList)}
        access_error = _find_access_error(list(required.values()))
        if scope is None or access_error is None:
            self._namespaces.record_failure(scope, errors[0])
            return None
        self._namespaces.record_unreadable(scope, access_error)
        if access_error.status == 404:
            for watched in self._resources:
                watched.cache.drop_namespace(scope)
        return None

    def _find_missing_resources(self, responses: ListResponses) -> dict[ApiResource, ApiError]:
        """Return the errors of optional resources that do not exist or must not be read."""
        optional = {watched.resource for watched in self._resources if watched.is_optional}
        errors = {resource: responses[resource] for resource in optional}
        return {
            resource: error
            for resource, error in errors.items()
            if isinstance(error, ApiError) and error.status in (403, 404)
        }

    def _record_missing_resources(self, scope: Scope, missing: Mapping[ApiResource, ApiError]) -> None:
        """Log once that a resource cannot be read, and again after it could."""
        for resource, error in missing.items():
            if resource not in self._missing_resources.get(scope, ()):
                log.warning(
                    "%s are not reconciled in %s, because they cannot be read; install the CRDs and the permissions of "
                    "this version, and restart the operator: %s",
                    resource.plural,
                    f"the namespace {scope}" if scope else "any namespace",
                    error,
                )
        self._missing_resources[scope] = frozenset(missing)

    def _replace_namespaces(self, lists: Mapping[Scope, NamespaceLists], previous_versions: Sequence[int]) -> None:
        """Replace the cached objects of these namespaces.

        `previous_versions` are the highest resource versions of each resource before the lists were requested.
        """
        if any(
            0 < object_lists[watched.resource].resource_version < previous_version
            for object_lists in lists.values()
            for watched, previous_version in zip(self._resources, previous_versions, strict=True)
            if watched.resource in object_lists
        ):
            self._clear_after_restore()
        for watched in self._resources:
            listed = {scope: each[watched.resource] for scope, each in lists.items() if watched.resource in each}
            if listed:
                _replace_resource(watched, listed)

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


def _find_access_error(responses: Sequence[ObjectList | BaseException]) -> ApiError | None:
    """Return the error which shows that the namespace itself cannot be read: 404 of all resources, or 403 of any.

    404 of FineTuneJobs alone means that the CRD is not installed.
    """
    errors = [response for response in responses if isinstance(response, ApiError)]
    not_found = [error for error in errors if error.status == 404]
    if len(not_found) == len(responses):
        return not_found[0]
    return next((error for error in errors if error.status == 403), None)
