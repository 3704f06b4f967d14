"""Builders of objects, as users, the API server, the Job controller and the kubelet write them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.api import KIND
from finetune_operator.api.objects import ObjectKey
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.manager import Manager

Body = dict[str, Any]
NOW = "2026-11-23T08:00:00Z"


def seconds_ago(seconds: float) -> str:
    """Return the time so many seconds before now, in RFC 3339."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def build_key(name: str = "bot", namespace: str = "team") -> ObjectKey:
    """Return the key of a FineTuneJob."""
    return ObjectKey(KIND, namespace, name)


def get_cache(manager: Manager) -> FineTuneJobCache:
    """Return the manager's cache of FineTuneJobs."""
    cache = manager.controllers[KIND].informer
    assert isinstance(cache, FineTuneJobCache)
    return cache


def merge_objects(base: Body, changes: Body) -> Body:
    """Merge `changes` into a copy of `base`. None removes a field."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge_objects(result[key], value)
        else:
            result[key] = value
    return result


def build_manifest(name: str = "bot", namespace: str = "team", spec: Body | None = None, **metadata: Any) -> Body:
    """Build a FineTuneJob as a user writes it."""
    base = {
        "model": {"uri": "hf://org/name"},
        "dataset": {"sources": [{"uri": "s3://bucket/data.jsonl"}]},
        "training": {"epochs": 1},
        "output": {"uri": "s3://bucket/adapters/{namespace}/{name}"},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": merge_objects(base, spec or {}),
    }


def build_finetunejob(name: str = "bot", spec: Body | None = None, **metadata: Any) -> Body:
    """Build a FineTuneJob as the API server returns it."""
    server_fields = {"uid": "uid-bot", "generation": 1, "resourceVersion": "10", "creationTimestamp": NOW}
    return build_manifest(name, spec=spec, **{**server_fields, **metadata})


def build_job(conditions: dict[str, tuple[str, str]] | None = None, suspend: bool = False, **status: Any) -> Body:
    """Build a Job as the Job controller leaves it. Conditions are {type: (reason, message)}."""
    true_conditions = [
        {"type": condition_type, "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}
        for condition_type, (reason, message) in (conditions or {}).items()
    ]
    return {
        "metadata": {"name": "bot", "namespace": "team", "uid": "uid-job", "creationTimestamp": NOW},
        "spec": {"suspend": suspend},
        "status": {**status, "conditions": true_conditions},
    }


def build_pod(name: str = "bot-1", state: Body | None = None, phase: str = "Pending", **extra: Any) -> Body:
    """Build a pod as the kubelet leaves it. `state` is that of the trainer container."""
    statuses = [{"name": "istio-proxy", "state": {"running": {}}}, {"name": "trainer", "state": state}]
    created = extra.pop("created", NOW)
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "creationTimestamp": created},
        "spec": {"nodeName": extra.pop("node", "node-1")},
        "status": {"phase": phase, "containerStatuses": statuses if state else None, **extra},
    }


def build_terminated_state(exit_code: int, message: str = "", reason: str = "Error") -> Body:
    """Build the state of a terminated trainer container."""
    return {
        "terminated": {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": NOW, "finishedAt": NOW}
    }


class Builders:
    """All builders, for the fixture `build`."""

    manifest = staticmethod(build_manifest)
    finetunejob = staticmethod(build_finetunejob)
    job = staticmethod(build_job)
    pod = staticmethod(build_pod)
    terminated = staticmethod(build_terminated_state)
    now = NOW
