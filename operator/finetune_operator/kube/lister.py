"""Fill the store by whole lists, each of one kind in one namespace, so that an error concerns that namespace alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.kube import transform
from finetune_operator.kube.cache import (
    InformerCache,
    ListSnapshot,
    ObjectCache,
    get_finetunejob_key,
    get_owner_key,
)
from finetune_operator.kube.client import FINETUNEJOBS, JOBS, PODS, ApiResource, KubeClient, ObjectList
from finetune_operator.kube.namespace_access import NamespaceRegistry, Scope
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError

log = logging.getLogger(__name__)

_MAX_PARALLEL_LISTS = 8
"""Namespaces that are listed at the same time: one that does not answer must not hold up all others."""

ListResponses = Sequence[ObjectList | BaseException]
"""Of one namespace, in the order of the kinds."""


class WatchedKind(NamedTuple):
    """A kind of object that is watched and listed."""

    resource: ApiResource
    cache: ObjectCache
    get_key: Callable[[Body], ObjectKey]
    decode: Callable[[msgspec.Raw, Body], Body]
    """From a list, whose head is known."""


class Lister:
    """Lists namespaces into the store, and records which of them can be read."""

    def __init__(self, client: KubeClient, cache: InformerCache, namespaces: NamespaceRegistry) -> None:
        self._client = client
        self._cache = cache
        self._namespaces = namespaces
        self.kinds = (  # in this order, for the end of a run tells what else of it is needed
            WatchedKind(FINETUNEJOBS, cache.finetunejobs, get_finetunejob_key, transform.decode_finetunejob),
            WatchedKind(JOBS, cache.jobs, get_finetunejob_key, transform.decode_body),
            WatchedKind(PODS, cache.pods, get_owner_key, transform.decode_body),
        )
        self._list_slots = asyncio.Semaphore(_MAX_PARALLEL_LISTS)
        self._refresh_lock = asyncio.Lock()
        """A deleted object is remembered for two lists, which covers the one that was under way."""

    async def refresh(self, scopes: Collection[Scope]) -> set[Scope]:
        """List these namespaces into the store; returns those that were listed."""
        async with self._refresh_lock:
            previous_versions = [kind.cache.highest_version for kind in self.kinds]
            responses_by_scope = dict(zip(scopes, await asyncio.gather(*map(self._fetch_lists, scopes)), strict=True))
            lists = {
                scope: object_lists
                for scope, responses in responses_by_scope.items()
                if (object_lists := self._check_responses(scope, responses))
            }
            self._cache.unreadable_namespaces = self._namespaces.get_unreadable()
            if lists:
                self._replace_namespaces(lists, previous_versions)
            self._cache.evict_finished_runs()
            return set(lists)

    async def _fetch_lists(self, scope: Scope) -> ListResponses:
        async with self._list_slots:
            requests = (self._client.list_objects(kind.resource, scope) for kind in self.kinds)
            responses = await asyncio.gather(*requests, return_exceptions=True)
        for response in responses:
            if isinstance(response, BaseException) and not isinstance(response, (ApiError, *CONNECTION_ERRORS)):
                raise response
        return responses

    def _check_responses(self, scope: Scope, responses: ListResponses) -> list[ObjectList] | None:
        """The lists if all of them succeeded; otherwise record what is wrong with the namespace."""
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
            for kind in self.kinds:
                kind.cache.drop_namespace(scope)
        return None

    def _replace_namespaces(
        self, lists: Mapping[Scope, Sequence[ObjectList]], previous_versions: Sequence[int]
    ) -> None:
        """Replace what is known of these namespaces. `seen` are the highest versions known before the requests."""
        for object_lists in lists.values():
            if any(
                0 < listed.resource_version < previous_version
                for listed, previous_version in zip(object_lists, previous_versions, strict=True)
            ):
                self._clear_after_restore()
                break
        for index, kind in enumerate(self.kinds):
            _replace_kind(kind, {scope: found[index] for scope, found in lists.items()})

    def _clear_after_restore(self) -> None:
        """Whole lists are of the newest version. One that is lower than before means that etcd was restored from a
        backup: https://github.com/kubernetes/kubernetes/issues/107457."""
        log.warning("resource versions went back, as after a restore of etcd: everything in memory is replaced")
        for kind in self.kinds:
            kind.cache.clear()


def _replace_kind(kind: WatchedKind, lists: Mapping[Scope, ObjectList]) -> None:
    snapshots = dict[Scope, ListSnapshot]()
    for scope, listed in lists.items():
        uids = set[str]()
        for raw in listed.items:
            head = transform.decode_head(raw)
            kind.cache.add_if_newer(kind.get_key(head), head, partial(kind.decode, raw, head))
            uids.add(head["metadata"]["uid"])
        snapshots[scope] = ListSnapshot(uids, listed.resource_version)
    kind.cache.replace(snapshots)


def _find_access_error(responses: ListResponses) -> ApiError | None:
    """What says that the namespace itself cannot be read: 404 of every kind (of FineTuneJobs alone it means that there
    is no CRD), or 403 of any."""
    errors = [response for response in responses if isinstance(response, ApiError)]
    not_found = [error for error in errors if error.status == 404]
    if len(not_found) == len(responses):
        return not_found[0]
    return next((each for each in errors if each.status == 403), None)
