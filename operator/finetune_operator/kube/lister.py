"""Fill the store by whole lists, each of one kind in one namespace, so that an error concerns that namespace alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from finetune_operator.kube import transform
from finetune_operator.kube.cache import Body, Key, Shelf, Store, WholeList, key_of, name_key
from finetune_operator.kube.client import FINETUNEJOBS, JOBS, PODS, Cluster, Listed, Resource
from finetune_operator.kube.namespace_access import Namespaces, Scope
from finetune_operator.kube.transport import NO_ANSWER, ApiError

log = logging.getLogger(__name__)

_PARALLEL = 8
"""Namespaces that are listed at the same time: one that does not answer must not hold up all others."""

Answers = Sequence[Listed | BaseException]
"""Of one namespace, in the order of the kinds."""


class Kind(NamedTuple):
    """A kind of object that is watched and listed."""

    resource: Resource
    shelf: Shelf
    key: Callable[[Body], Key]
    read: Callable[[msgspec.Raw, Body], Body]
    """From a list, whose head is known."""


class Lister:
    """Lists namespaces into the store, and records which of them can be read."""

    def __init__(self, cluster: Cluster, store: Store, namespaces: Namespaces) -> None:
        self._cluster = cluster
        self._store = store
        self._namespaces = namespaces
        self.kinds = (  # in this order, for the end of a run tells what else of it is needed
            Kind(FINETUNEJOBS, store.finetunejobs, name_key, transform.read_finetunejob),
            Kind(JOBS, store.jobs, name_key, transform.read),
            Kind(PODS, store.pods, key_of, transform.read),
        )
        self._slots = asyncio.Semaphore(_PARALLEL)
        self._one_at_a_time = asyncio.Lock()
        """A deleted object is remembered for two lists, which covers the one that was under way."""

    async def update(self, scopes: Collection[Scope]) -> set[Scope]:
        """List these namespaces into the store; returns those that were listed."""
        async with self._one_at_a_time:
            seen = [kind.shelf.highest for kind in self.kinds]
            answers = dict(zip(scopes, await asyncio.gather(*map(self._read, scopes)), strict=True))
            lists = {scope: found for scope, each in answers.items() if (found := self._judge(scope, each))}
            self._store.unreadable = self._namespaces.refused()
            if lists:
                self._take(lists, seen)
            self._store.forget_gone()
            return set(lists)

    async def _read(self, scope: Scope) -> Answers:
        async with self._slots:
            requests = (self._cluster.list_kind(kind.resource, scope) for kind in self.kinds)
            answers = await asyncio.gather(*requests, return_exceptions=True)
        for each in answers:
            if isinstance(each, BaseException) and not isinstance(each, (ApiError, *NO_ANSWER)):
                raise each
        return answers

    def _judge(self, scope: Scope, answers: Answers) -> list[Listed] | None:
        """The lists if all of them succeeded; otherwise record what is wrong with the namespace."""
        errors = [each for each in answers if isinstance(each, Exception)]
        if not errors:
            self._namespaces.record_list(scope)
            return [each for each in answers if isinstance(each, Listed)]
        refusal = _find_refusal(answers)
        if scope is None or refusal is None:
            self._namespaces.record_failure(scope, errors[0])
            return None
        self._namespaces.record_refusal(scope, refusal)
        if refusal.status == 404:
            for kind in self.kinds:
                kind.shelf.drop_namespace(scope)
        return None

    def _take(self, lists: Mapping[Scope, Sequence[Listed]], seen: Sequence[int]) -> None:
        """Replace what is known of these namespaces. `seen` are the highest versions known before the requests."""
        for found in lists.values():
            if any(0 < each.version < known for each, known in zip(found, seen, strict=True)):
                self._forget_rewritten()
                break
        for index, kind in enumerate(self.kinds):
            _fill(kind, {scope: found[index] for scope, found in lists.items()})

    def _forget_rewritten(self) -> None:
        """Whole lists are of the newest version. One that is lower than before means that etcd was restored from a
        backup: https://github.com/kubernetes/kubernetes/issues/107457."""
        log.warning("resource versions went back, as after a restore of etcd: everything in memory is replaced")
        for kind in self.kinds:
            kind.shelf.clear()


def _fill(kind: Kind, lists: Mapping[Scope, Listed]) -> None:
    whole = dict[Scope, WholeList]()
    for scope, listed in lists.items():
        uids = set[str]()
        for raw in listed.items:
            head = transform.head(raw)
            kind.shelf.offer(kind.key(head), head, partial(kind.read, raw, head))
            uids.add(head["metadata"]["uid"])
        whole[scope] = WholeList(uids, listed.version)
    kind.shelf.keep_only(whole)


def _find_refusal(answers: Answers) -> ApiError | None:
    """What says that the namespace itself cannot be read: 404 of every kind (of FineTuneJobs alone it means that there
    is no CRD), or 403 of any."""
    errors = [each for each in answers if isinstance(each, ApiError)]
    missing = [each for each in errors if each.status == 404]
    if len(missing) == len(answers):
        return missing[0]
    return next((each for each in errors if each.status == 403), None)
