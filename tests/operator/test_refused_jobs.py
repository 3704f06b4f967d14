"""Jobs that may not be, as the API server or the operator finds: final only where a new FineTuneJob alone helps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.operator.proxies import healthy

if TYPE_CHECKING:
    from tests.operator.world import World

pytestmark = pytest.mark.cluster

POLICY = "ValidatingAdmissionPolicy 'limits' with binding 'limits' denied request: no GPUs at night"
WEBHOOK = 'admission webhook "jobs.example" denied the request: unsigned image'
AWAY = 'Internal error occurred: failed calling webhook "mjob.kb.io": no endpoints available for service "kueue"'
# status, message, and the reason and phase of the FineTuneJob
ANSWERS: dict[str, tuple[int, str, str, str]] = {
    "a quota": (403, 'jobs.batch "bot" is forbidden: exceeded quota: jobs', "JobRefused", "Pending"),
    "a policy": (422, f'jobs.batch "bot" is forbidden: {POLICY}', "JobRefused", "Pending"),
    "a webhook": (403, WEBHOOK, "JobRefused", "Pending"),
    "a webhook that calls it invalid": (422, WEBHOOK, "JobRefused", "Pending"),
    "a webhook that does not answer": (500, AWAY, "JobRefused", "Pending"),
    "the Job's own rules": (422, 'Job.batch "bot" is invalid: spec.template: required', "InvalidSpec", "Failed"),
}


@pytest.mark.parametrize(("code", "message", "reason", "phase"), ANSWERS.values(), ids=ANSWERS)
async def test_a_refusal_is_told_and_is_final_only_if_it_stays(
    world: World, code: int, message: str, reason: str, phase: str
) -> None:
    async def refuse(request: web.Request) -> web.Response | None:
        if (request.method, request.path.rpartition("/")[2]) != ("POST", "jobs"):
            return None
        return web.json_response({"kind": "Status", "reason": "x", "message": message, "code": code}, status=code)

    world.proxy.trouble = refuse
    async with world.operator():
        await world.apply()
        status = await world.reason(reason)
        assert status["phase"] == phase
        assert message in status["conditions"][0]["message"]
        world.proxy.trouble = healthy
        if phase == "Pending":
            await world.reason("JobCreated")


async def test_a_policy_that_undoes_what_is_changed_is_not_argued_with(world: World) -> None:
    """Or each look would ask for another a second later."""
    asked = list[str]()

    async def undo(request: web.Request) -> web.Response | None:
        if (request.method, request.path) != ("PATCH", world.path("jobs", "bot")):
            return None
        asked.append(request.path)
        return web.json_response(job)

    async with world.operator():
        await world.apply()
        await world.reason("JobCreated")
        job = await world.get("jobs")
        world.proxy.trouble = undo
        await world.change({"backoffLimit": 9})
        await world.until(lambda: _found(asked))
        await asyncio.sleep(1.5)  # its own status makes it look once more
        before = len(asked)
        await asyncio.sleep(6)
    assert len(asked) - before <= 3  # every five seconds it asks why no pod starts


async def _found(asked: list[str]) -> bool:
    return bool(asked)


async def test_a_job_that_the_api_server_finds_invalid_is_final(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"compute": {"resources": {"requests": {"cpu": "4"}, "limits": {"cpu": "1"}}}})
        status = await world.reason("InvalidSpec")
    assert status["phase"] == "Failed"
    assert "cpu" in status["conditions"][0]["message"]


async def test_a_refused_job_is_tried_again(world: World) -> None:
    for _ in range(2):  # the second, 5 s before the third attempt, is long enough to be seen
        world.proxy.fail("POST", "/jobs", 403)
    async with world.operator():
        await world.apply()
        status = await world.reason("JobRefused")
        assert {each["type"] for each in status["conditions"]} == {"Running", "Reconciling"}
        await world.reason("JobCreated")


async def test_what_the_operator_itself_finds_invalid_is_final(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"output": {"uri": "s3://bucket/" + "{namespace}" * 90}})
        await world.apply("good")
        await world.reason("InvalidSpec")
        await world.reason("JobCreated", "good")
