"""Runs that are only in the operator's cache."""

from __future__ import annotations

from typing import Any

from tests.support.operator.builders import NOW, Body, build_finetunejob, build_job, build_key, build_pod

from finetune_operator.kube.finetunejob_cache import FineTuneJobCache

RUNNING = {"running": {"startedAt": NOW}}


def set_owner(uid: str, body: Body, namespace: str, name: str, label: str = "bot") -> Body:
    """Return an object of this name and label whose controller has this UID."""
    kind = "pod" if "containerStatuses" in body["status"] else "job"
    identity = {"namespace": namespace, "name": name, "uid": f"{kind}-{namespace}-{name}"}
    owner = [{"uid": uid, "controller": True}]
    labels = {"finetune.dev/job": label}
    return {**body, "metadata": {**body["metadata"], **identity, "ownerReferences": owner, "labels": labels}}


def store_run(cache: FineTuneJobCache, namespace: str, name: str, address: str, **condition: Any) -> None:
    """Store a FineTuneJob, its Job and the Job's pod."""
    body = build_finetunejob(name, namespace=namespace, uid=f"ftj-{namespace}-{name}")
    status = {"conditions": [condition]} if condition else {}
    cache.finetunejobs.update(build_key(name, namespace), {**body, "status": status})
    job = set_owner(f"ftj-{namespace}-{name}", build_job(active=1), namespace, name, name)
    cache.jobs.update(build_key(name, namespace), job)
    running_pod = build_pod(name, RUNNING, "Running", podIP=address)
    pod = set_owner(job["metadata"]["uid"], running_pod, namespace, name, name)
    cache.pods.update(build_key(name, namespace), pod)
