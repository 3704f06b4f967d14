"""The manager with a controller of a second kind, against a real API server. ConfigMaps are the second kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.operator.dummy_kind import DUMMY_KIND, CountingReconciler, DummyInformer

from finetune_operator.api.objects import ObjectKey
from finetune_operator.controller.controller import Controller
from finetune_operator.kube.client import ApiResource

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

LABEL = "example.com/reconciled"
READ_CONFIG_MAPS = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}


@pytest.mark.cluster
async def test_manager_second_kind_is_listed_watched_and_reconciled_apart(world: NamespaceHarness) -> None:
    await world.grant_role([READ_CONFIG_MAPS], "dummies")
    informer, reconciler = DummyInformer(ApiResource("", "v1", "configmaps", LABEL)), CountingReconciler()

    async def create_config_map(name: str) -> None:
        meta = {"name": name, "labels": {LABEL: "yes"}}
        await world.call("POST", world.path("configmaps"), {"metadata": meta})

    async def is_reconciled(name: str) -> bool:
        return ObjectKey(DUMMY_KIND, world.namespace, name) in reconciler.keys

    await create_config_map("listed")
    async with world.run_operator(Controller(DUMMY_KIND, informer, reconciler)):
        await world.wait_until(lambda: is_reconciled("listed"))
        await create_config_map("bot")
        await world.create_finetunejob("bot")
        await world.wait_until(lambda: is_reconciled("bot"))
        await world.wait_for_reason("JobCreated")
    assert {key.kind for key in reconciler.keys} == {DUMMY_KIND}
