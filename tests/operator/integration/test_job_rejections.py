"""Jobs that are rejected by the API server or the operator: terminal only if a new FineTuneJob is needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.support.operator.fault_proxy import pass_through

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

POLICY = "ValidatingAdmissionPolicy 'limits' with binding 'limits' denied request: no GPUs at night"
WEBHOOK = 'admission webhook "jobs.example" denied the request: unsigned image'
WEBHOOK_UNAVAILABLE = (
    'Internal error occurred: failed calling webhook "mjob.kb.io": no endpoints available for service "kueue"'
)
# Status and message of the response, and the reason and phase of the FineTuneJob.
ANSWERS: dict[str, tuple[int, str, str, str]] = {
    "a quota": (403, 'jobs.batch "bot" is forbidden: exceeded quota: jobs', "JobRefused", "Pending"),
    "a policy": (422, f'jobs.batch "bot" is forbidden: {POLICY}', "JobRefused", "Pending"),
    "a webhook": (403, WEBHOOK, "JobRefused", "Pending"),
    "a webhook that calls it invalid": (422, WEBHOOK, "JobRefused", "Pending"),
    "a webhook that does not answer": (500, WEBHOOK_UNAVAILABLE, "JobRefused", "Pending"),
    "the Job's own rules": (422, 'Job.batch "bot" is invalid: spec.template: required', "InvalidSpec", "Failed"),
}


@pytest.mark.parametrize(("code", "message", "reason", "phase"), ANSWERS.values(), ids=ANSWERS)
async def test_job_rejected_sets_reason_and_fails_only_if_permanent(
    world: NamespaceHarness, code: int, message: str, reason: str, phase: str
) -> None:
    async def refuse(request: web.Request) -> web.Response | None:
        if (request.method, request.path.rpartition("/")[2]) != ("POST", "jobs"):
            return None
        return web.json_response({"kind": "Status", "reason": "x", "message": message, "code": code}, status=code)

    world.proxy.interceptor = refuse
    async with world.run_operator():
        await world.create_finetunejob()
        status = await world.wait_for_reason(reason)
        assert status["phase"] == phase
        assert message in status["conditions"][0]["message"]
        world.proxy.interceptor = pass_through
        if phase == "Pending":
            await world.wait_for_reason("JobCreated")


async def test_job_patch_undone_by_policy_is_not_repeated_endlessly(world: NamespaceHarness) -> None:
    """Otherwise each reconcile would request another one a second later."""
    patches = list[str]()

    async def undo(request: web.Request) -> web.Response | None:
        if (request.method, request.path) != ("PATCH", world.path("jobs", "bot")):
            return None
        patches.append(request.path)
        return web.json_response(job)

    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
        job = await world.get("jobs")
        world.proxy.interceptor = undo
        await world.patch_spec({"backoffLimit": 9})
        await world.wait_until(lambda: _has_items(patches))
        await asyncio.sleep(1.5)  # its own status write causes one more reconcile
        before = len(patches)
        await asyncio.sleep(6)
    assert len(patches) - before <= 3  # every five seconds it reads why no pod starts


async def _has_items(items: list[str]) -> bool:
    return bool(items)


async def test_job_invalid_for_api_server_fails_run(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(
            spec={"compute": {"resources": {"requests": {"cpu": "4"}, "limits": {"cpu": "1"}}}}
        )
        status = await world.wait_for_reason("InvalidSpec")
    assert status["phase"] == "Failed"
    assert "cpu" in status["conditions"][0]["message"]


async def test_job_rejected_is_retried(world: NamespaceHarness) -> None:
    for _ in range(2):  # the second, 5 s before the third attempt, is long enough to be seen
        world.proxy.fail_next("POST", "/jobs", 403)
    async with world.run_operator():
        await world.create_finetunejob()
        status = await world.wait_for_reason("JobRefused")
        assert {condition["type"] for condition in status["conditions"]} == {"Running", "Reconciling"}
        await world.wait_for_reason("JobCreated")


async def test_job_invalid_for_operator_fails_run(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"output": {"uri": "s3://bucket/" + "{namespace}" * 90}})
        await world.create_finetunejob("good")
        await world.wait_for_reason("InvalidSpec")
        await world.wait_for_reason("JobCreated", "good")
