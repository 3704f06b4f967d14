"""A pool of workers reconciles several kinds from one queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.support.operator.builders import build_finetunejob, build_key

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.controller.controller import Controller
from finetune_operator.controller.workers import WorkerPool
from finetune_operator.kube.cache import ObjectCache
from finetune_operator.kube.client import ApiResource
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.informer import WatchedResource
from finetune_operator.kube.transform import decode_body
from finetune_operator.manager import Manager
from finetune_operator.settings import Settings

OTHER_KIND = "Dummy"


def get_dummy_key(body: Body) -> ObjectKey:
    return ObjectKey(OTHER_KIND, body["metadata"]["namespace"], body["metadata"]["name"])


class DummyInformer:
    """The cache of another kind."""

    def __init__(self, resource: ApiResource) -> None:
        self.cache = ObjectCache(lambda body: body)
        self.unreadable_namespaces: set[str] = set()
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


@asynccontextmanager
async def run_pool(pool: WorkerPool) -> AsyncIterator[None]:
    task = asyncio.create_task(pool.run())
    await asyncio.wait_for(pool.wait_for_new_work_done(), 5)
    try:
        yield
        await asyncio.sleep(0.05)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_worker_pool_two_kinds_of_same_name_each_reconcile_their_own() -> None:
    dummy, cache = DummyInformer(ApiResource("example.com", "v1", "dummies")), FineTuneJobCache()
    reconcilers = {"FineTuneJob": CountingReconciler(), OTHER_KIND: CountingReconciler()}
    pool = WorkerPool(2)
    pool.register(Controller("FineTuneJob", cache, reconcilers["FineTuneJob"]))
    pool.register(Controller(OTHER_KIND, dummy, reconcilers[OTHER_KIND]))
    body = build_finetunejob()
    cache.finetunejobs.update(build_key(), body)
    dummy.cache.update(get_dummy_key(body), body)
    async with run_pool(pool):
        pass
    assert reconcilers["FineTuneJob"].keys == [build_key()]
    assert reconcilers[OTHER_KIND].keys == [ObjectKey(OTHER_KIND, "team", "bot")]


async def test_worker_pool_unreadable_namespace_is_not_reconciled() -> None:
    dummy, reconciler, pool = DummyInformer(ApiResource("", "v1", "dummies")), CountingReconciler(), WorkerPool(1)
    pool.register(Controller(OTHER_KIND, dummy, reconciler))
    dummy.unreadable_namespaces = {"team"}
    async with run_pool(pool):
        pool.enqueue(ObjectKey(OTHER_KIND, "team", "bot"))
        pool.enqueue(ObjectKey(OTHER_KIND, "other", "bot"))
    assert reconciler.keys == [ObjectKey(OTHER_KIND, "other", "bot")]


def test_manager_registered_kind_is_watched() -> None:
    manager = Manager(Settings())
    dummy = DummyInformer(ApiResource("example.com", "v1", "dummies"))
    manager.register(Controller(OTHER_KIND, dummy, CountingReconciler()))
    handlers = manager.build_registry()._watching.get_all_handlers()
    assert {handler.id for handler in handlers} == {
        "FineTuneJob-finetunejobs", "FineTuneJob-jobs", "FineTuneJob-pods", "Dummy-dummies",
    }  # fmt: skip
