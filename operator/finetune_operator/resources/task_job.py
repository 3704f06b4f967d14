"""Builder of the Job of a task pod, which reads or writes S3 with the credentials of a run or of a template.

A task pod has the Secrets, the service account and the node selection of its run, and neither GPU nor scratch volume.
It has no label of a run, so that no watch, NetworkPolicy or monitor takes it for a trainer, and no label of a queue.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api import FineTuneJob, FineTuneJobSpec
from finetune_operator.api.compute import drop_reserved_keys
from finetune_operator.api.labels import MANAGED_BY_LABEL, TASK_LABEL, TERMINATION_LOG, VISIBLE_DEVICES_ENV
from finetune_operator.api.objects import Body
from finetune_operator.policy.defaults import apply_defaults
from finetune_operator.policy.profiles import ChosenProfile
from finetune_operator.resources import security, volumes
from finetune_operator.resources.owner import build_owner_reference
from finetune_operator.resources.profile import apply_access_settings
from finetune_operator.settings import Settings
from finetune_trainer import contract
from finetune_trainer.contract import CleanTask, ExitCode, Storage, TaskConfig, TrainerConfig

TASK_CONTAINER = "task"
_MAX_NAME_LENGTH = 63
_DIGEST_LENGTH = 10
_BACKOFF_LIMIT = 3
_DEADLINE_SECONDS = 3600
_TTL_SECONDS = 24 * 3600
"""Seconds after which the Job is deleted. A failed one is then created again, if its FineTuneJob still exists."""
_RESOURCES = {
    "requests": {"cpu": "50m", "memory": "128Mi"},
    "limits": {"cpu": "1", "memory": "512Mi"},
}
_POD_FAILURE_RULES = [
    {
        "action": "FailJob",
        "onExitCodes": {"containerName": TASK_CONTAINER, "operator": "In", "values": [int(ExitCode.PERMANENT)]},
    },
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]


class TaskKind(StrEnum):
    """Kinds of tasks. They are values of `TASK_LABEL` and parts of the names of Jobs."""

    CLEAN = "clean"
    CHECK_INPUTS = "check-inputs"
    PROMOTE = "promote"
    REPORT = "report"


class Task(NamedTuple):
    """A task, and the object that it is done for."""

    kind: TaskKind
    config: TaskConfig
    owner_name: str
    owner_reference: Body | None
    """Unset if the owner was deleted."""
    identity: str
    """Distinguishes the Jobs of an owner: the same identity is the same Job."""
    is_suspended: bool = False
    """Whether the Job waits until the operator resumes it."""


def build_clean_job(
    finetunejob: FineTuneJob,
    settings: Settings,
    not_before: str | None = None,
    chosen_profile: ChosenProfile | None = None,
) -> Body:
    """Return the Job that deletes the checkpoints of a run which has ended.

    With `not_before` (RFC 3339) it is the Job for a deleted FineTuneJob: it has no owner, and it is suspended until
    the operator resumes it. Raises `pydantic.ValidationError` if `output.uri` is too long.
    """
    meta = finetunejob.metadata
    clean = _build_clean_task(finetunejob, settings)
    storage = get_task_storage(finetunejob, settings)
    config = TaskConfig(storage=storage, clean=clean)
    identity = f"{meta.uid}/{'deleted' if not_before else 'ended'}/{encode_config(config)}"
    task = Task(
        kind=TaskKind.CLEAN,
        config=TaskConfig(storage=storage, clean=clean.model_copy(update={"not_before": not_before})),
        owner_name=meta.name,
        owner_reference=None if not_before else build_owner_reference(meta),
        identity=identity,
        is_suspended=not_before is not None,
    )
    return build_task_job(task, finetunejob, settings, chosen_profile)


def build_task_job(
    task: Task, finetunejob: FineTuneJob, settings: Settings, chosen_profile: ChosenProfile | None = None
) -> Body:
    """Return the Job of a task, with the Secrets and the node selection of a FineTuneJob, and the proxies and
    certificates of its compute profile."""
    job = _build_plain_job(task, apply_defaults(finetunejob, settings.defaults), settings)
    return apply_access_settings(job, chosen_profile, finetunejob.spec) if chosen_profile else job


def get_task_storage(finetunejob: FineTuneJob, settings: Settings) -> Storage:
    """Return the trainer's part of the storage of a FineTuneJob, with the defaults of the installation."""
    return TrainerConfig.from_manifest(apply_defaults(finetunejob, settings.defaults).to_json()).storage


def encode_config(config: TaskConfig) -> str:
    """Return the config as JSON."""
    return json.dumps(config.to_json(), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _build_plain_job(task: Task, finetunejob: FineTuneJob, settings: Settings) -> Body:
    """Return the Job without the settings of a compute profile."""
    spec, labels = finetunejob.spec, {**MANAGED_BY_LABEL, TASK_LABEL: task.kind.value}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": _build_name(task),
            "namespace": finetunejob.metadata.namespace,
            "labels": labels,
            "ownerReferences": [task.owner_reference] if task.owner_reference else [],
        },
        "spec": {
            "suspend": task.is_suspended,
            "backoffLimit": _BACKOFF_LIMIT,
            "activeDeadlineSeconds": _DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": _TTL_SECONDS,
            "podFailurePolicy": {"rules": _POD_FAILURE_RULES},
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": drop_reserved_keys(spec.compute.pod_labels) | labels,
                    "annotations": drop_reserved_keys(spec.compute.pod_annotations),
                },
                "spec": _build_pod_spec(spec, settings, task.config),
            },
        },
    }


def read_task_config(job: Body) -> TaskConfig | None:
    """Return the config of a stored Job, or None if it has no valid one: it may be of another version."""
    containers = job["spec"].get("template", {}).get("spec", {}).get("containers", [])
    variables = [variable for container in containers for variable in container.get("env", [])]
    environment = {variable["name"]: variable.get("value", "") for variable in variables}
    text = contract.join_variables(contract.TASK_CONFIG_ENV, environment)
    try:
        return TaskConfig.model_validate_json(text.replace("$$", "$")) if text else None
    except ValidationError:
        return None


def get_output_uri(finetunejob: FineTuneJob) -> str:
    """Return the prefix of the run's output, with its placeholders replaced and without a slash at its end."""
    return TrainerConfig.from_manifest(finetunejob.to_json()).output.uri.rstrip("/")


def _build_clean_task(finetunejob: FineTuneJob, settings: Settings) -> CleanTask:
    # A tenth less, because the clocks of the store and of the cluster differ, and the last checkpoint may be as young
    # as the end of the run.
    min_age_seconds = settings.checkpoint_retention_seconds * 9 // 10
    return CleanTask(output_uri=get_output_uri(finetunejob), min_age_seconds=min_age_seconds)


def _build_name(task: Task) -> str:
    """Return a name that depends on the owner and the identity alone, so that a repeated creation finds the Job."""
    suffix = f"-{task.kind.value}-{hashlib.sha256(task.identity.encode()).hexdigest()[:_DIGEST_LENGTH]}"
    return task.owner_name[: _MAX_NAME_LENGTH - len(suffix)].rstrip("-.") + suffix


def _build_mounts(spec: FineTuneJobSpec, config: TaskConfig) -> list[tuple[Body, Body]]:
    """Return what the task needs to read or write its objects, and no other Secret."""
    mounts = volumes.build_storage_mounts(spec.storage)
    if config.check_inputs:
        mounts += [*volumes.build_hub_mounts(spec), *volumes.build_input_claim_mounts(spec)]
    return [*mounts, *(volumes.build_signing_mounts(spec) if config.promote else [])]


def _build_environment(spec: FineTuneJobSpec, settings: Settings, config: TaskConfig) -> dict[str, str]:
    variables = contract.split_variables(contract.TASK_CONFIG_ENV, encode_config(config))
    environment = {
        **{name: part.replace("$", "$$") for name, part in variables.items()},  # the kubelet expands `$(NAME)`
        contract.OUTCOME_PATH_ENV: TERMINATION_LOG,
        VISIBLE_DEVICES_ENV: "none",  # images of CUDA make all GPUs of the node visible otherwise
        **volumes.build_storage_environment(spec.storage, settings.defaults.allow_node_identity),
    }
    if config.check_inputs:
        environment |= volumes.build_input_environment(spec)
    return environment | (volumes.build_signing_environment(spec) if config.promote else {})


def _build_pod_spec(spec: FineTuneJobSpec, settings: Settings, config: TaskConfig) -> Body:
    compute = spec.compute
    mounts = _build_mounts(spec, config)
    pod_spec: Body = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security.build_pod_security_context(),
        "containers": [_build_container(spec, settings, config)],
        "volumes": [{"name": mount["name"], **source} for mount, source in mounts],
        "nodeSelector": dict(compute.node_selector),
        "tolerations": [toleration.to_json() for toleration in compute.tolerations],
        "imagePullSecrets": [secret.to_json() for secret in compute.image_pull_secrets],
        "serviceAccountName": compute.service_account_name,
    }
    return {key: value for key, value in pod_spec.items() if value is not None and value != [] and value != {}}


def _build_container(spec: FineTuneJobSpec, settings: Settings, config: TaskConfig) -> Body:
    environment = _build_environment(spec, settings, config)
    container: Body = {
        "name": TASK_CONTAINER,
        "image": settings.task_image or settings.trainer_image,
        "args": ["task"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": _RESOURCES,
        "volumeMounts": [mount for mount, _ in _build_mounts(spec, config)],
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": security.build_container_security_context(),
    }
    policy = settings.trainer_image_pull_policy
    return {**container, "imagePullPolicy": policy} if policy else container
