"""Builders of bodies: what stands in the API server, and what Job controller and kubelet make of it."""

from __future__ import annotations

import copy
from typing import Any

from finetune_operator.api import KIND
from finetune_operator.api.objects import ObjectKey
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.manager import Manager

Body = dict[str, Any]
NOW = "2026-11-23T08:00:00Z"


def build_key(name: str = "bot", namespace: str = "team") -> ObjectKey:
    """Return the key of a FineTuneJob."""
    return ObjectKey(KIND, namespace, name)


def get_cache(manager: Manager) -> FineTuneJobCache:
    """Return the manager's cache of FineTuneJobs."""
    cache = manager.controllers[KIND].informer
    assert isinstance(cache, FineTuneJobCache)
    return cache


def merge_objects(base: Body, changes: Body) -> Body:
    """`base` with `changes`, dicts merged, None removing."""
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
    """A FineTuneJob as a person writes it."""
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
    """A FineTuneJob as the API server gives it."""
    server_fields = {"uid": "uid-bot", "generation": 1, "resourceVersion": "10", "creationTimestamp": NOW}
    return build_manifest(name, spec=spec, **{**server_fields, **metadata})


def build_job(conditions: dict[str, tuple[str, str]] | None = None, suspend: bool = False, **status: Any) -> Body:
    """A Job as the Job controller leaves it; conditions as {type: (reason, message)}."""
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
    """A pod as the kubelet leaves it; `state` is the trainer container's."""
    statuses = [{"name": "istio-proxy", "state": {"running": {}}}, {"name": "trainer", "state": state}]
    created = extra.pop("created", NOW)
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "creationTimestamp": created},
        "spec": {"nodeName": extra.pop("node", "node-1")},
        "status": {"phase": phase, "containerStatuses": statuses if state else None, **extra},
    }


def build_terminated_state(exit_code: int, message: str = "", reason: str = "Error") -> Body:
    """The trainer container's state after its end."""
    return {
        "terminated": {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": NOW, "finishedAt": NOW}
    }


class Builders:
    """The builders in one hand: with importlib mode a test cannot import a module of helpers."""

    manifest = staticmethod(build_manifest)
    finetunejob = staticmethod(build_finetunejob)
    job = staticmethod(build_job)
    pod = staticmethod(build_pod)
    terminated = staticmethod(build_terminated_state)
    now = NOW
