"""Builders for runs with several pods or GPUs: completion indexes, the rendezvous Service, shared memory.

Only the pod with index 0 serves progress, saves checkpoints and publishes the result.
"""

from __future__ import annotations

from finetune_operator.api import ObjectMeta
from finetune_operator.api.compute import ComputeSpec
from finetune_operator.api.objects import Body
from finetune_trainer.contract import NODES_ENV, PROCESSES_ENV, RENDEZVOUS_ENV, RENDEZVOUS_PORT, SHARDING_ENV


def build_indexed_job_fields(compute: ComputeSpec) -> Body:
    """Return the fields of the Job's spec that give each pod an index and a host name."""
    if compute.nodes == 1:
        return {}
    return {"completionMode": "Indexed", "completions": compute.nodes, "parallelism": compute.nodes}


def build_environment(meta: ObjectMeta, compute: ComputeSpec) -> dict[str, str]:
    """Return the numbers of nodes and processes, the sharding and the rendezvous endpoint.

    Kubernetes adds the index of each pod. The host name contains the namespace, because with a pod's DNS search path
    `bot-0.bot` could also be a Service `bot-0` in another user's namespace `bot`.
    https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
    """
    process_settings = {PROCESSES_ENV: str(compute.gpus_per_node)} if compute.gpus_per_node > 1 else {}
    if compute.sharding != "none":
        process_settings[SHARDING_ENV] = compute.sharding
    if compute.nodes == 1:
        return process_settings
    rank_zero_host = f"{meta.name}-0.{get_service_name(meta.name)}.{meta.namespace}.svc"
    return {NODES_ENV: str(compute.nodes), RENDEZVOUS_ENV: f"{rank_zero_host}:{RENDEZVOUS_PORT}", **process_settings}


def get_service_name(job_name: str) -> str:
    """Return the name of the headless Service: that of the Job, with a prefix if it begins with a digit.

    Without the feature gate RelaxedServiceNameValidation, the name of a Service must begin with a letter:
    https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#rfc-1035-label-names
    """
    return f"ftj-{job_name}" if job_name[0].isdigit() else job_name


def build_mounts(compute: ComputeSpec) -> list[tuple[Body, Body]]:
    """Return the shared memory for NCCL between the GPUs of a pod. The default of 64 MiB is not sufficient."""
    return [build_shared_memory_mount("2Gi")] if compute.gpus_per_node > 1 else []


def build_shared_memory_mount(size: str) -> tuple[Body, Body]:
    """Return the mount of `/dev/shm` and the source of its volume."""
    source = {"emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return {"name": "shared-memory", "mountPath": "/dev/shm"}, source


def build_service(job: Body) -> Body | None:
    """Return the headless Service that resolves the host name of the Job's first pod, or None for one pod."""
    subdomain = job["spec"]["template"]["spec"].get("subdomain")
    if subdomain is None:
        return None
    meta = job["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": subdomain,
            "namespace": meta["namespace"],
            "ownerReferences": meta["ownerReferences"],
            "labels": _get_shared_labels(job),
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # The rendezvous takes place before the pods are ready.
            "selector": _get_shared_labels(job),
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _get_shared_labels(job: Body) -> dict[str, str]:
    """Return the labels that the Job and its pods have in common. Kueue's labels are on the Job only."""
    pod_labels: dict[str, str] = job["spec"]["template"]["metadata"]["labels"]
    return {key: value for key, value in job["metadata"]["labels"].items() if pod_labels.get(key) == value}
