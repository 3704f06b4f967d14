"""An operator whose cluster has no FineTuneSchedules and FineTuneSweeps, or which may not read them."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from tests.support.operator.api_server import OPERATOR_TOKEN, open_session
from tests.support.operator.fault_proxy import FaultProxy, build_error_response

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]

OWNERS = ("finetuneschedules", "finetunesweeps")
DISCOVERY_PATH = "/apis/finetune.dev/v1alpha1"


class MissingKinds:
    """Refuses requests for the owners of FineTuneJobs. Without their CRDs, the discovery does not list them either."""

    def __init__(self, proxy: FaultProxy, status: int) -> None:
        self._proxy = proxy
        self._status = status

    async def intercept(self, request: web.Request) -> web.StreamResponse | None:
        """Answer as an API server without the CRDs (404) or without the permissions (403)."""
        if any(plural in request.path for plural in OWNERS):
            return build_error_response(self._status)
        if request.path != DISCOVERY_PATH or self._status != 404:
            return None
        async with open_session(OPERATOR_TOKEN) as session:
            return web.json_response(await self._discover(session))

    async def _discover(self, session: aiohttp.ClientSession) -> object:
        async with session.get(self._proxy.target + DISCOVERY_PATH) as response:
            listed = json.loads(await response.text())
        resources = [each for each in listed["resources"] if not each["name"].startswith(OWNERS)]
        return {**listed, "resources": resources}


@pytest.mark.parametrize("status", [403, 404])
async def test_operator_without_kinds_of_owners_reconciles_finetunejobs_and_logs_it_once(
    world: NamespaceHarness, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    world.proxy.interceptor = MissingKinds(world.proxy, status).intercept
    caplog.set_level(logging.WARNING)
    async with world.run_operator() as operator:
        await world.create_finetunejob("bot")
        await world.wait_for_reason("JobCreated")
        await operator.resync()
        await operator.resync()
        await world.create_finetunejob("later")  # only the watch reports it
        await world.wait_for_reason("JobCreated", "later")
        operator.check_liveness()
        assert operator.check_readiness()["role"] == "leader"
    messages = [record.getMessage() for record in caplog.records]
    for plural in OWNERS:
        assert len([each for each in messages if each.startswith(f"{plural} are not reconciled")]) == 1
