"""What several pods that train together need beyond what one needs: numbers, and a place to meet. Pure.

The pod of index 0 speaks for all: it alone serves progress, stores checkpoints and publishes.
"""

from __future__ import annotations

from finetune_operator.api import ObjectMeta
from finetune_operator.api.compute import ComputeSpec
from finetune_operator.api.objects import Body
from finetune_trainer.contract import NODES_ENV, PROCESSES_ENV, RENDEZVOUS_ENV, RENDEZVOUS_PORT


def build_indexed_job_fields(compute: ComputeSpec) -> Body:
    """The part of a Job's spec that gives each pod a number and a name of its own."""
    if compute.nodes == 1:
        return {}
    return {"completionMode": "Indexed", "completions": compute.nodes, "parallelism": compute.nodes}


def build_environment(meta: ObjectMeta, compute: ComputeSpec) -> dict[str, str]:
    """What tells the trainers how many they are; Kubernetes adds which of them each is.

    The first pod's name has its namespace in it: by a pod's search path `bot-0.bot` may also be a Service `bot-0` in
    somebody's namespace `bot`. https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
    """
    process_count = {PROCESSES_ENV: str(compute.gpus_per_node)} if compute.gpus_per_node > 1 else {}
    if compute.nodes == 1:
        return process_count
    rank_zero_host = f"{meta.name}-0.{meta.name}.{meta.namespace}.svc"
    return {NODES_ENV: str(compute.nodes), RENDEZVOUS_ENV: f"{rank_zero_host}:{RENDEZVOUS_PORT}", **process_count}


def build_mounts(compute: ComputeSpec) -> list[tuple[Body, Body]]:
    """Shared memory for NCCL between the GPUs of a pod; a container's own 64 MiB are too few."""
    if compute.gpus_per_node <= 1:
        return []
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
    return [({"name": "shared-memory", "mountPath": "/dev/shm"}, source)]


def build_service(job: Body) -> Body | None:
    """The headless Service by which the pods of this Job find the first of them; None for a Job of one pod."""
    subdomain = job["spec"]["template"]["spec"].get("subdomain")
    if subdomain is None:
        return None
    meta = job["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {key: meta[key] for key in ("name", "namespace", "ownerReferences")}
        | {"labels": _get_shared_labels(job)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # they meet before any of them is ready
            "selector": _get_shared_labels(job),
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _get_shared_labels(job: Body) -> dict[str, str]:
    """Those of the Job that its pods have too; Kueue's are the Job's alone."""
    pod_labels: dict[str, str] = job["spec"]["template"]["metadata"]["labels"]
    return {key: value for key, value in job["metadata"]["labels"].items() if pod_labels.get(key) == value}
