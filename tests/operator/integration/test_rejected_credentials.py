"""The API server rejects valid credentials for a while, as it does while it cannot read service accounts from etcd."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.support.operator.fault_proxy import build_error_response, pass_through

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

LOGIN_INTERVAL = 0.5


async def _reject(_: web.Request) -> web.StreamResponse:
    return build_error_response(401)


async def test_operator_credentials_rejected_for_a_while_keeps_running(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kopf_settings", "kube.transport"):
        monkeypatch.setattr(f"finetune_operator.{module}._MIN_LOGIN_INTERVAL", LOGIN_INTERVAL)
    monkeypatch.setattr("finetune_operator.kopf_settings._WATCH_INACTIVITY_SECONDS", 0.5)  # then a watch begins again
    async with world.run_operator(resync_interval=3600.0) as operator:
        world.proxy.interceptor = _reject
        since = len(world.proxy.requests)
        await asyncio.sleep(4 * LOGIN_INTERVAL)
        assert len(world.proxy.requests) - since < 100
        world.proxy.interceptor = pass_through
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
        assert operator.check_liveness()
