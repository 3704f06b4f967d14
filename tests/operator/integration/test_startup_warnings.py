"""The status explains with Events why a pod does not start. Events are not watched."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import seconds_ago

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster


async def _create_warning_event(
    world: NamespaceHarness, involved_object: dict[str, Any], reason: str, message: str, seconds: float = 0
) -> None:
    """Create an Event as the kubelet or the Job controller does."""
    meta = involved_object["metadata"]
    reference = {key: meta[key] for key in ("name", "namespace", "uid")}
    event = {"metadata": {"generateName": "e"}, "involvedObject": reference, "type": "Warning"}
    details = {"reason": reason, "message": message, "lastTimestamp": seconds_ago(seconds)}
    await world.call("POST", world.path("events"), event | details)


async def test_reconciler_pod_warning_event_sets_reason_and_message(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.status.deadlines.STARTUP_GRACE_SECONDS", 1.0)
    async with world.run_operator():
        await world.create_finetunejob(spec={"storage": {"credentialsSecretRef": {"name": "keys"}}})
        await _create_warning_event(world, await world.create_pod(), "FailedMount", 'secret "keys" not found')
        await world.report_container_state({"waiting": {"reason": "ContainerCreating"}}, "Pending")
        status = await world.wait_for_reason("SecretNotFound")
    message = status["conditions"][0]["message"]
    assert "Secret keys (spec.storage.credentialsSecretRef) does not exist" in message
    assert 'secret "keys" not found' in message


@pytest.mark.parametrize("is_left", [True, False], ids=["the pod before is left", "the pod before is gone"])
async def test_reconciler_job_warning_event_sets_job_refused(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch, is_left: bool
) -> None:
    """Warnings about an earlier pod, which has started since, are ignored."""
    monkeypatch.setattr("finetune_operator.status.deadlines.BACKOFF_GRACE_SECONDS", 2.0)
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        job = await world.get("jobs")
        await _create_warning_event(world, job, "FailedCreate", "of before", 30)
        terminated = {"exitCode": 143, "startedAt": seconds_ago(20), "finishedAt": seconds_ago(0)}
        message_json = json.dumps({"reason": "Preempted", "message": "asked to stop"})
        await world.report_container_state({"terminated": terminated | {"message": message_json}}, "Failed")
        await world.wait_for_reason("Retrying")
        if not is_left:
            await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await _create_warning_event(world, job, "FailedCreate", "exceeded quota: memory")
        status = await world.wait_for_reason("JobRefused")
        message = status["conditions"][0]["message"]
        await world.create_pod(index=2)
        await world.wait_for_reason("Retrying")
    assert "FailedCreate: exceeded quota: memory" in message
    assert "asked to stop" in message
