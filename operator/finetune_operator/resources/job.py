"""The Job that a FineTuneJob should own. Pure: objects in, a plain Kubernetes body out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune_operator.api import API_VERSION, GROUP, KIND, FineTuneJob, Metadata
from finetune_operator.api.compute import Compute, is_reserved
from finetune_operator.policy.defaults import with_defaults
from finetune_operator.resources import multi_node, volumes
from finetune_operator.settings import Settings
from finetune_trainer import contract
from finetune_trainer.contract import ExitCode, TrainerConfig

Body = dict[str, Any]

CONTAINER = "trainer"
JOB_LABEL = f"{GROUP}/job"
"""Names the FineTuneJob on its Job and pods; the watches select by it."""

_LAST_WORDS = 20
"""Seconds of the grace period that are left to a trainer which could not store a checkpoint, to say so and end."""
QUEUE_LABEL, PRIORITY_LABEL = KUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
"""Of Kueue's labels those that ask; others are said by Kueue itself, such as whose Workload a Job takes over."""
_USER = 65532  # "nonroot"; also the trainer image's user
_ENDED_FOR_GOOD, _PREEMPTED = (
    {"containerName": CONTAINER, "operator": "In", "values": sorted(map(int, codes))}
    for codes in ((ExitCode.PERMANENT,), (ExitCode.PREEMPTED, ExitCode.PEER_LOST))
)


def desired_job(job: FineTuneJob, settings: Settings) -> Body:
    """The Job, complete. Created once and never applied again: Kueue edits some of its fields.

    Raises pydantic's `ValidationError` if the placeholders make `output.uri` too long.
    """
    job = with_defaults(job, settings.defaults)
    meta, compute = job.metadata, job.spec.compute
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": {key: meta.labels[key] for key in KUEUE_LABELS if key in meta.labels} | _labels(meta),
            "ownerReferences": [_owner_reference(meta)],
        },
        "spec": {
            **multi_node.job_fields(compute),
            "backoffLimit": job.spec.backoff_limit,
            "podFailurePolicy": {
                "rules": [  # the first that matches counts
                    {"action": "FailJob", "onExitCodes": _ENDED_FOR_GOOD},
                    {"action": "Ignore", "onExitCodes": _PREEMPTED},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "podReplacementPolicy": "Failed",  # never two trainers at once; a failure policy allows no other
            "template": {
                "metadata": {
                    "labels": _unreserved(compute.pod_labels) | _labels(meta),
                    "annotations": _unreserved(compute.pod_annotations),
                },
                "spec": _pod_spec(job, settings),
            },
        },
    }


def config_value(config: TrainerConfig) -> str:
    """The config as an environment variable's value, JSON with `$` doubled.

    The kubelet turns `$$` into `$` and leaves `$(NAME)` alone only where its `$` is doubled; doubling just the `$` of
    `$(` would let `$$(NAME)` through.
    """
    return json.dumps(config.to_json(), ensure_ascii=False, separators=(",", ":")).replace("$", "$$")


def _labels(meta: Metadata) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "finetune-operator", JOB_LABEL: meta.name}


def _owner_reference(meta: Metadata) -> Body:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _unreserved(values: Mapping[str, str]) -> dict[str, str]:
    """The CRD refuses reserved keys; the object may be older than that rule."""
    return {key: value for key, value in values.items() if not is_reserved(key)}


def _pod_spec(job: FineTuneJob, settings: Settings) -> Body:
    compute = job.spec.compute
    mounts = volumes.mounts(job.spec) + multi_node.mounts(compute)
    spec: Body = {
        "restartPolicy": "Never",
        "subdomain": job.metadata.name if compute.nodes > 1 else None,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": compute.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, settings, mounts)],
        "volumes": [{"name": mount["name"], **source} for mount, source in mounts],
        "nodeSelector": dict(compute.node_selector),
        "tolerations": [each.to_json() for each in compute.tolerations],
        "imagePullSecrets": [each.to_json() for each in compute.image_pull_secrets],
        "serviceAccountName": compute.service_account_name,
        "priorityClassName": compute.priority_class_name,
    }
    return {key: value for key, value in spec.items() if value is not None and value != [] and value != {}}


def _container(job: FineTuneJob, settings: Settings, mounts: list[tuple[Body, Body]]) -> Body:
    compute = job.spec.compute
    image = compute.image or settings.trainer_image
    own = _environment(job) | {contract.IMAGE_ENV: image}
    environment = own | volumes.environment(job.spec, settings.defaults.allow_node_identity)
    container: Body = {
        "name": CONTAINER,
        "image": image,
        "args": ["run"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"name": "progress", "containerPort": contract.PROGRESS_PORT}],
        "resources": _resources(compute),
        "volumeMounts": [mount for mount, _ in mounts],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    policy = settings.trainer_image_pull_policy
    return {**container, "imagePullPolicy": policy} if policy else container


def _environment(job: FineTuneJob) -> dict[str, str]:
    """A closed list: no field of a FineTuneJob can set a variable of its own."""
    compute = job.spec.compute
    own = {
        contract.CONFIG_ENV: config_value(TrainerConfig.from_manifest(job.to_json())),
        contract.RUN_ID_ENV: job.metadata.uid,
        contract.JOB_ENV: f"{job.metadata.namespace}/{job.metadata.name}",
        contract.OUTCOME_PATH_ENV: "/dev/termination-log",
        contract.STOP_SECONDS_ENV: str(max(1, compute.termination_grace_period_seconds - _LAST_WORDS)),
    }
    return own | multi_node.environment(job.metadata, compute)


def _resources(compute: Compute) -> Body:
    gpus = {compute.gpu_resource: str(compute.gpus_per_node)} if compute.gpus_per_node else {}
    return {
        "requests": dict(compute.resources.requests) | gpus,
        "limits": dict(compute.resources.limits) | gpus,
    }
