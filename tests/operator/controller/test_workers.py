"""A pool of workers reconciles several kinds from one queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.operator.builders import build_finetunejob, build_key
from tests.support.operator.dummy_kind import DUMMY_KIND, CountingReconciler, DummyInformer, get_dummy_key

from finetune_operator.api.objects import ObjectKey
from finetune_operator.controller.controller import Controller
from finetune_operator.controller.workers import WorkerPool
from finetune_operator.kube.client import ApiResource
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.manager import Manager
from finetune_operator.settings import Settings


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
    reconcilers = {"FineTuneJob": CountingReconciler(), DUMMY_KIND: CountingReconciler()}
    pool = WorkerPool(2)
    pool.register(Controller("FineTuneJob", cache, reconcilers["FineTuneJob"]))
    pool.register(Controller(DUMMY_KIND, dummy, reconcilers[DUMMY_KIND]))
    body = build_finetunejob()
    cache.finetunejobs.update(build_key(), body)
    dummy.cache.update(get_dummy_key(body), body)
    async with run_pool(pool):
        pass
    assert reconcilers["FineTuneJob"].keys == [build_key()]
    assert reconcilers[DUMMY_KIND].keys == [ObjectKey(DUMMY_KIND, "team", "bot")]


async def test_worker_pool_unreadable_namespace_is_not_reconciled() -> None:
    dummy, reconciler, pool = DummyInformer(ApiResource("", "v1", "dummies")), CountingReconciler(), WorkerPool(1)
    pool.register(Controller(DUMMY_KIND, dummy, reconciler))
    dummy.unreadable_namespaces = {"team"}
    async with run_pool(pool):
        pool.enqueue(ObjectKey(DUMMY_KIND, "team", "bot"))
        pool.enqueue(ObjectKey(DUMMY_KIND, "other", "bot"))
    assert reconciler.keys == [ObjectKey(DUMMY_KIND, "other", "bot")]


def test_manager_registered_kind_is_watched() -> None:
    manager = Manager(Settings(checkpoint_retention_seconds=0))
    dummy = DummyInformer(ApiResource("example.com", "v1", "dummies"))
    manager.register(Controller(DUMMY_KIND, dummy, CountingReconciler()))
    handlers = manager.build_registry()._watching.get_all_handlers()
    assert {handler.id for handler in handlers} == {
        "watch-finetunejobs", "watch-jobs", "watch-pods", "watch-finetuneschedules", "watch-finetunesweeps",
        "watch-dummies",
    }  # fmt: skip
