"""A namespace full of FineTuneJobs, FineTuneSchedules and FineTuneSweeps with their statuses, as the operator writes
them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import aiohttp
from tests.support.operator.api_server import open_session
from tests.support.operator.builders import build_manifest, merge_objects, seconds_ago

Body = dict[str, Any]
NAMESPACE, OTHER_NAMESPACE = "support", "research"
RUN_COUNT = 200
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e\u200b{{ 7*7 }}"
"""Executes something, or changes the page, where a page does not escape it."""
_GROUP = "/apis/finetune.dev/v1alpha1"
_PHASES = ("Complete", "Complete", "Complete", "Failed", "Complete", "Suspended", "Complete", "Cancelled")


def build_condition(condition_type: str, reason: str, message: str = "", age: int = 600) -> Body:
    """Build a condition that is true."""
    return {
        "type": condition_type, "status": "True", "reason": reason, "message": message, "observedGeneration": 1,
        "lastTransitionTime": seconds_ago(age),
    }  # fmt: skip


def build_runs(endpoint: str) -> Iterable[tuple[Body, Body]]:
    """Yield the manifests and statuses of `RUN_COUNT` runs, among them an active one and a hostile one."""
    yield from (_build_ended_run(index, endpoint) for index in range(RUN_COUNT - 5))
    yield _build(endpoint, "bot-best", build_complete_status("bot-best"))
    yield _build(endpoint, "bot-second", build_complete_status("bot-second"))
    yield build_manifest("waiting", OTHER_NAMESPACE), {}
    yield _build(endpoint, "hostile", build_hostile_status(), model={"uri": f"s3://models/{MARKUP[:60]}/"})
    yield _build(endpoint, "live", build_live_status(120))


def _build(endpoint: str, name: str, status: Body, **spec: Any) -> tuple[Body, Body]:
    fields = {
        "model": {"uri": "hf://Qwen/Qwen3-0.6B"}, "storage": {"endpoint": endpoint},
        "training": {"learningRate": 2e-4, "lora": {"rank": 8}}, "output": {"uri": f"s3://results/{NAMESPACE}/{name}"},
    }  # fmt: skip
    return build_manifest(name, NAMESPACE, merge_objects(fields, spec)), status


def _build_ended_run(index: int, endpoint: str) -> tuple[Body, Body]:
    phase = _PHASES[index % len(_PHASES)]
    name = f"bot-{index:03}"
    reason = {"Complete": "Completed", "Failed": "ConfigInvalid"}.get(phase, phase)
    status = {
        "phase": phase, "reason": reason, "duration": f"{index % 50 + 3}m",
        "startTime": seconds_ago(3600 + index * 600),
        "conditions": [build_condition(phase, reason, f"Run {name} has ended.")],
        "progress": {
            "percentage": 100 if phase == "Complete" else 40, "completed": "100%" if phase == "Complete" else "40%",
            "step": 200, "totalSteps": 200, "loss": 1 + index / 100, "evalLoss": 1.2 + index / 100,
            "lastUpdateTime": seconds_ago(3600),
        },
    }  # fmt: skip
    manifest, _ = _build(endpoint, name, status, model={"uri": f"hf://org/base-{index % 7}b"})
    labels = {"finetune.dev/schedule": "nightly"} if index % 10 == 0 else {}
    return merge_objects(manifest, {"metadata": {"labels": labels}}), status


def build_complete_status(name: str) -> Body:
    """Build the status of a run whose result is in the store. The digest is added when the result is published."""
    uri = f"s3://results/{NAMESPACE}/{name}"
    return {
        "phase": "Complete", "reason": "Completed", "duration": "41m", "startTime": seconds_ago(4000),
        "completionTime": seconds_ago(1500), "attempts": 1, "gpuSeconds": 2460, "logURI": f"{uri}/run.log",
        "conditions": [build_condition("Complete", "Completed", "The adapter and its report are published.")],
        "progress": {
            "stage": "Uploading", "percentage": 100, "completed": "100%", "step": 900, "totalSteps": 900, "loss": 0.71,
            "evalLoss": 1.42, "lastUpdateTime": seconds_ago(1500),
        },
        "dataset": {
            "rows": 12000, "kept": 10423, "validation": 540,
            "rejected": {"duplicate": 310, "overlength": 690, "leaked": 37},
            "tokens": 2345678, "supervisedTokens": 1111222, "digest": "sha256:" + "d" * 64,
        },
        "result": {
            "adapterURI": uri, "reportURI": f"{uri}/report.html", "digest": "sha256:" + "0" * 64,
            "modelRevision": "0123456789abcdef0123456789abcdef01234567",
            "metrics": {"evalLoss": 1.42, "perplexity": 4.14, "accuracy": 0.83},
            "verdicts": {"overfitting": "none", "forgetting": "none", "bias": "unknown"},
        },
    }  # fmt: skip


def build_live_status(step: int) -> Body:
    """Build the status of a run at a step."""
    return {
        "phase": "Running", "reason": "PodRunning", "startTime": seconds_ago(900), "duration": "15m", "attempts": 2,
        "lastCheckpointStep": step - step % 50, "gpuSeconds": 900,
        "conditions": [build_condition("Running", "PodRunning", "Pod live-x7b2k trains.")],
        "progress": {
            "stage": "Training", "percentage": step // 4, "completed": f"{step // 4}%", "step": step, "totalSteps": 400,
            "loss": 2 - step / 400, "evalLoss": 2.1 - step / 500, "tokensPerSecond": 5210.0,
            "estimatedRemainingSeconds": 1260, "estimatedRemaining": "21m", "lastUpdateTime": seconds_ago(5),
        },
    }  # fmt: skip


def build_hostile_status() -> Body:
    """Build a status with markup in each field that can have it."""
    uri = f"s3://results/{NAMESPACE}/hostile"
    status = build_complete_status("hostile")
    return merge_objects(
        status,
        {
            "duration": "<b>1</b>",
            "conditions": [build_condition("Complete", "Completed", MARKUP)],
            "dataset": {"rejected": {"<script>alert(3)</script>": 5}, "digest": "<svg onload=alert(4)>"},
            "result": {
                "adapterURI": uri, "modelRevision": MARKUP, "metrics": {"<iframe src=//evil.example>": 1.0},
                "mergedURI": "javascript:alert(5)",
            },
        },
    )  # fmt: skip


def build_schedule(endpoint: str) -> tuple[Body, Body]:
    """Build a schedule with runs, decisions and champions."""
    spec = build_manifest()["spec"] | {"storage": {"endpoint": endpoint}}
    spec["dataset"] = {**spec["dataset"], "validation": {"sources": [{"uri": "s3://bucket/validation.jsonl"}]}}
    runs = [_build_scheduled_run(index) for index in range(6)]
    champions = [_build_champion(index) for index in (1, 4)]
    status = {
        "conditions": [build_condition("UpToDate", "Trained", MARKUP)], "runs": runs, "champion": champions[0],
        "champions": champions, "nextScheduleTime": seconds_ago(-7200), "lastSuccessfulTime": seconds_ago(80000),
        "aliasURI": "s3://results/nightly/champion.json", "reportURI": "s3://results/nightly/champion.json.html",
    }  # fmt: skip
    manifest = build_manifest("nightly", NAMESPACE) | {
        "kind": "FineTuneSchedule",
        "spec": {
            "schedule": "0 3 * * *", "timeZone": "Europe/Paris", "template": {"spec": spec},
            "alias": {"uri": "s3://results/nightly/champion.json"},
        },
    }  # fmt: skip
    return manifest, status


def _build_scheduled_run(index: int) -> Body:
    loss = 1.3 + index / 20
    change = {
        "metric": "evalLoss", "higherIsBetter": False, "baseline": loss + 0.05, "value": loss, "change": -0.05,
        "low": -0.08, "high": -0.02 if index % 3 == 1 else 0.01, "samples": 540,
    }  # fmt: skip
    return {
        "name": f"nightly-{index}", "trigger": "Schedule", "scheduledTime": seconds_ago(86400 * (index + 1)),
        "templateHash": "abc", "created": True, "phase": "Complete", "reason": "Completed",
        "decision": "Promoted" if index in (1, 4) else "NotBetter", "metrics": {"evalLoss": loss}, "changes": [change],
        "message": MARKUP if index == 0 else "evalLoss is 0.05 lower than that of the champion.",
        "adapterURI": f"s3://results/nightly/{index}", "digest": "sha256:" + "1" * 64,
    }  # fmt: skip


def _build_champion(index: int) -> Body:
    return {
        "run": f"nightly-{index}", "adapterURI": f"s3://results/nightly/{index}", "digest": "sha256:" + "1" * 64,
        "modelURI": "hf://org/name", "modelRevision": "abc", "promotedTime": seconds_ago(86400 * index),
        "reason": "Promoted", "metrics": {"evalLoss": 1.3},
    }  # fmt: skip


def build_sweep(endpoint: str) -> tuple[Body, Body]:
    """Build a sweep with complete, cut, failed and active trials."""
    spec = build_manifest()["spec"] | {"storage": {"endpoint": endpoint}}
    spec["dataset"] = {**spec["dataset"], "validation": {"fraction": 0.1}}
    spec["output"] = {"uri": "s3://results/sweep/{name}"}
    trials = [_build_trial(index) for index in range(9)]
    best = {
        "name": "rates-5", "configuration": 5, "parameters": trials[4]["parameters"], "value": trials[4]["value"],
        "adapterURI": "s3://results/sweep/rates-5", "digest": "sha256:" + "2" * 64, "verdict": "Inconclusive",
        "message": f"The difference to the second may be chance. {MARKUP}",
    }  # fmt: skip
    status = {
        "phase": "Running", "reason": "TrialsActive", "trials": trials, "best": best, "gpuSeconds": 8200,
        "conditions": [build_condition("Running", "TrialsActive", "2 of 9 trials are active.")],
        "counts": {"total": 9, "active": 2, "complete": 5, "cut": 1, "failed": 1, "finished": "7/9"},
    }  # fmt: skip
    parameters = {"learningRate": {"values": [1e-4, 3e-4, 1e-3]}, "loraRank": {"values": [8, 16, 32]}}
    manifest = build_manifest("rates", NAMESPACE) | {
        "kind": "FineTuneSweep",
        "spec": {"template": {"spec": spec}, "parameters": parameters, "output": {"uri": "s3://results/sweep/"}},
    }
    return manifest, status


def _build_trial(index: int) -> Body:
    rate, rank = (1e-4, 3e-4, 1e-3)[index % 3], (8, 16, 32)[index // 3]
    trial: Body = {
        "name": f"rates-{index + 1}", "configuration": index + 1, "created": True, "seed": 42,
        "gpuSeconds": 900 + index, "parameters": {"learningRate": rate, "loraRank": rank},
    }  # fmt: skip
    if index < 5:
        return trial | {"phase": "Complete", "reason": "Completed", "value": 1.9 - index / 10}
    if index == 5:
        return trial | {"phase": "Cancelled", "cutAtStep": 100}
    return trial | ({"phase": "Failed", "reason": "OOMKilled"} if index == 6 else {"phase": "Running"})


async def create_objects(server: str, objects: Iterable[tuple[Body, Body]]) -> None:
    """Create objects with their statuses, several at the same time."""
    async with open_session() as session:
        for namespace in (NAMESPACE, OTHER_NAMESPACE):
            await send(session, "POST", f"{server}/api/v1/namespaces", {"metadata": {"name": namespace}})
        limit = asyncio.Semaphore(16)

        async def create(manifest: Body, status: Body) -> None:
            async with limit:
                await put_object(session, server, manifest, status)

        await asyncio.gather(*(create(*each) for each in objects))


async def put_object(session: aiohttp.ClientSession, server: str, manifest: Body, status: Body) -> None:
    """Create an object, and set its status."""
    url = f"{server}{_GROUP}/namespaces/{manifest['metadata']['namespace']}/{manifest['kind'].lower()}s"
    await send(session, "POST", url, manifest)
    if status:
        await send(session, "PATCH", f"{url}/{manifest['metadata']['name']}/status", {"status": status})


async def send(session: aiohttp.ClientSession, method: str, url: str, body: Body) -> None:
    """Send a request that must succeed."""
    content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
    async with session.request(method, url, json=body, headers={"Content-Type": content_type}) as response:
        assert response.ok, f"{method} {url}: {await response.text()}"


async def set_live_step(server: str, step: int) -> None:
    """Let the active run reach a step."""
    url = f"{server}{_GROUP}/namespaces/{NAMESPACE}/finetunejobs/live/status"
    async with open_session() as session:
        await send(session, "PATCH", url, {"status": build_live_status(step)})


async def create_event(server: str, name: str) -> None:
    """Create a hostile Event about a run."""
    event = {
        "metadata": {"name": f"{name}.1", "namespace": NAMESPACE},
        "involvedObject": {"kind": "FineTuneJob", "name": name, "namespace": NAMESPACE},
        "type": "Warning", "reason": "<b>Bold</b>", "message": MARKUP, "count": 3,
        "firstTimestamp": seconds_ago(90), "lastTimestamp": seconds_ago(60),
    }  # fmt: skip
    async with open_session() as session:
        await send(session, "POST", f"{server}/api/v1/namespaces/{NAMESPACE}/events", event)
