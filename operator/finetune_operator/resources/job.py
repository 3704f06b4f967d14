"""Builder of the Job of a FineTuneJob."""

from __future__ import annotations

import json

from finetune_operator.api import FineTuneJob, ObjectMeta
from finetune_operator.api.compute import ComputeSpec, drop_reserved_keys
from finetune_operator.api.labels import JOB_LABEL, KUEUE_LABELS, TRAINER_CONTAINER
from finetune_operator.api.objects import Body
from finetune_operator.policy.defaults import apply_defaults
from finetune_operator.resources import multi_node, security, volumes
from finetune_operator.resources.owner import build_owner_reference
from finetune_operator.settings import Settings
from finetune_trainer import contract
from finetune_trainer.contract import ExitCode, TrainerConfig

_SHUTDOWN_RESERVE_SECONDS = 20
"""Seconds of the grace period in which a trainer that could not save a checkpoint reports this and exits."""
_POD_FAILURE_RULES = [  # The first matching rule applies.
    {
        "action": "FailJob",
        "onExitCodes": {"containerName": TRAINER_CONTAINER, "operator": "In", "values": [int(ExitCode.PERMANENT)]},
    },
    {
        "action": "Ignore",
        "onExitCodes": {
            "containerName": TRAINER_CONTAINER,
            "operator": "In",
            "values": sorted(map(int, (ExitCode.PREEMPTED, ExitCode.PEER_LOST))),
        },
    },
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]


def build_job(finetunejob: FineTuneJob, settings: Settings) -> Body:
    """Return the complete Job.

    It is created once and not applied again, because Kueue edits some of its fields.

    Raises `pydantic.ValidationError` if `output.uri` is too long with its placeholders replaced.
    """
    finetunejob = apply_defaults(finetunejob, settings.defaults)
    meta, compute = finetunejob.metadata, finetunejob.spec.compute
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": {key: meta.labels[key] for key in KUEUE_LABELS if key in meta.labels} | _build_labels(meta),
            "ownerReferences": [build_owner_reference(meta)],
        },
        "spec": {
            **multi_node.build_indexed_job_fields(compute),
            "backoffLimit": finetunejob.spec.backoff_limit,
            "podFailurePolicy": {"rules": _POD_FAILURE_RULES},
            "podReplacementPolicy": "Failed",  # Two trainers never run at once. A podFailurePolicy requires it, too.
            "template": {
                "metadata": {
                    "labels": drop_reserved_keys(compute.pod_labels) | _build_labels(meta),
                    "annotations": drop_reserved_keys(compute.pod_annotations),
                },
                "spec": _build_pod_spec(finetunejob, settings),
            },
        },
    }


MAX_VARIABLE_BYTES = 131_071
"""Bytes of a variable with its name that Linux passes to a program (`MAX_ARG_STRLEN`, without the final null)."""


class ConfigTooLargeError(ValueError):
    """Raised for a config that is too long for an environment variable."""


def encode_config(config: TrainerConfig) -> str:
    """Return the config as JSON, escaped for the value of an environment variable: each `$` is doubled.

    The kubelet expands `$(NAME)` and replaces `$$` by `$`. It is not sufficient to double only the `$` of `$(`, because
    `$$(NAME)` in the config would become `$$$(NAME)`, in which `$(NAME)` is expanded. Raises `ConfigTooLargeError`.
    """
    encoded = json.dumps(config.to_json(), ensure_ascii=False, separators=(",", ":"))
    size = len(f"{contract.CONFIG_ENV}={encoded}".encode())
    if size > MAX_VARIABLE_BYTES:
        raise ConfigTooLargeError(
            f"the config has {size} bytes as JSON, but a container cannot start with more than {MAX_VARIABLE_BYTES} in "
            "one variable; shorten model.chatTemplate or other long fields"
        )
    return encoded.replace("$", "$$")


def _build_labels(meta: ObjectMeta) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "finetune-operator", JOB_LABEL: meta.name}


def _build_pod_spec(finetunejob: FineTuneJob, settings: Settings) -> Body:
    compute = finetunejob.spec.compute
    mounts = volumes.build_mounts(finetunejob.spec) + multi_node.build_mounts(compute)
    spec: Body = {
        "restartPolicy": "Never",
        "subdomain": finetunejob.metadata.name if compute.nodes > 1 else None,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": compute.termination_grace_period_seconds,
        "securityContext": security.build_pod_security_context(),
        "containers": [_build_container(finetunejob, settings, mounts)],
        "volumes": [{"name": mount["name"], **source} for mount, source in mounts],
        "nodeSelector": dict(compute.node_selector),
        "tolerations": [toleration.to_json() for toleration in compute.tolerations],
        "imagePullSecrets": [secret.to_json() for secret in compute.image_pull_secrets],
        "serviceAccountName": compute.service_account_name,
        "priorityClassName": compute.priority_class_name,
    }
    return {key: value for key, value in spec.items() if value is not None and value != [] and value != {}}


def _build_container(finetunejob: FineTuneJob, settings: Settings, mounts: list[tuple[Body, Body]]) -> Body:
    compute = finetunejob.spec.compute
    image = compute.image or settings.trainer_image
    trainer_environment = _build_environment(finetunejob) | {contract.IMAGE_ENV: image}
    environment = trainer_environment | volumes.build_environment(
        finetunejob.spec, settings.defaults.allow_node_identity
    )
    container: Body = {
        "name": TRAINER_CONTAINER,
        "image": image,
        "args": ["run"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"name": "progress", "containerPort": contract.PROGRESS_PORT}],
        "resources": _build_resource_requirements(compute),
        "volumeMounts": [mount for mount, _ in mounts],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": security.build_container_security_context(),
    }
    policy = settings.trainer_image_pull_policy
    return {**container, "imagePullPolicy": policy} if policy else container


def _build_environment(finetunejob: FineTuneJob) -> dict[str, str]:
    """Return the environment variables of the trainer. No field of a FineTuneJob can add a variable."""
    compute = finetunejob.spec.compute
    environment = {
        contract.CONFIG_ENV: encode_config(TrainerConfig.from_manifest(finetunejob.to_json())),
        contract.RUN_ID_ENV: finetunejob.metadata.uid,
        contract.JOB_ENV: f"{finetunejob.metadata.namespace}/{finetunejob.metadata.name}",
        contract.OUTCOME_PATH_ENV: "/dev/termination-log",
        contract.STOP_SECONDS_ENV: str(max(1, compute.termination_grace_period_seconds - _SHUTDOWN_RESERVE_SECONDS)),
    }
    if finetunejob.metadata.creation_timestamp:
        # Immutable, so that a Job that is created again, by any version of the operator, gets the same date.
        environment[contract.TEMPLATE_DATE_ENV] = finetunejob.metadata.creation_timestamp.partition("T")[0]
    return environment | multi_node.build_environment(finetunejob.metadata, compute)


def _build_resource_requirements(compute: ComputeSpec) -> Body:
    gpus = {compute.gpu_resource: str(compute.gpus_per_node)} if compute.gpus_per_node else {}
    return {
        "requests": dict(compute.resources.requests) | gpus,
        "limits": dict(compute.resources.limits) | gpus,
    }
