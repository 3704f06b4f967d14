"""Tests of runs with a model cache on a real API server, in a namespace with restricted pods."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api.labels import MODEL_CACHE_CONTAINER

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

Body = dict[str, Any]
pytestmark = pytest.mark.cluster

CLAIM = "models"
SPEC: Body = {
    "dataset": {"sources": [{"uri": f"pvc://{CLAIM}/rows.jsonl"}]},
    "compute": {"modelCacheClaimName": CLAIM, "gpusPerNode": 2},
}


async def _report_cache_state(world: NamespaceHarness, state: Body) -> None:
    """Report the state of the init container as the kubelet does."""
    entry = {
        "name": MODEL_CACHE_CONTAINER,
        "state": state,
        "ready": False,
        "restartCount": 0,
        "image": "",
        "imageID": "",
    }
    status = {"phase": "Pending", "initContainerStatuses": [entry]}
    await world.call("PATCH", world.path("pods", "bot-1", "status"), {"status": status})


async def test_model_cache_result_reaches_status(world: NamespaceHarness) -> None:
    async def find_message(text: str) -> bool | None:
        status = (await world.get("finetunejobs")).get("status", {})
        return text in json.dumps(status.get("conditions", [])) or None

    async with world.run_operator():
        await world.create_finetunejob(spec=SPEC)
        pod = await world.create_pod()
        assert [container["name"] for container in pod["spec"]["initContainers"]] == [MODEL_CACHE_CONTAINER]
        await _report_cache_state(world, {"running": {"startedAt": "2026-11-23T08:00:00Z"}})
        await world.wait_until(lambda: find_message("is filling or verifying the model cache"))
        await _report_cache_state(world, {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
        await world.wait_for_reason("ImagePullFailed")
        outcome = json.dumps({"reason": "Completed", "message": "done", "modelCache": "Filled"})
        times = {"startedAt": "2026-11-23T08:00:00Z", "finishedAt": "2026-11-23T08:01:00Z"}
        ended = {"terminated": {"exitCode": 0, "message": outcome, **times}}
        await world.report_container_state(ended, phase="Succeeded")
        await world.report_job_end("Complete")
        status = await world.wait_for_reason("Completed")
        assert status["modelCache"] == "Filled"
