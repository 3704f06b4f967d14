"""Builder of the Job of a FineTuneJob."""

from __future__ import annotations

import json
import re

from finetune_operator.api import FineTuneJob, FineTuneJobSpec, ObjectMeta
from finetune_operator.api.compute import ComputeSpec, drop_reserved_keys
from finetune_operator.api.labels import (
    DEFAULT_STARTUP_DEADLINE_ANNOTATION,
    INSTALLATION_ANNOTATION,
    JOB_LABEL,
    KUEUE_LABELS,
    MANAGED_BY_LABEL,
    SCRATCH_CLAIM_LABEL,
    SUSPEND_AT_STEP_ANNOTATION,
    TERMINATION_LOG,
    TRAINER_CONTAINER,
    VISIBLE_DEVICES_ENV,
)
from finetune_operator.api.objects import Body
from finetune_operator.policy.defaults import apply_defaults
from finetune_operator.policy.profiles import ChosenProfile
from finetune_operator.resources import model_cache, multi_node, security, volumes
from finetune_operator.resources.owner import build_owner_reference
from finetune_operator.resources.profile import apply_profile, apply_profile_resources
from finetune_operator.settings import Settings
from finetune_trainer import contract
from finetune_trainer.contract import ExitCode, TrainerConfig

_SHUTDOWN_RESERVE_SECONDS = 20
"""Seconds of the grace period in which a trainer that could not save a checkpoint reports this and exits."""
_ZERO = re.compile("[0.]+[a-zA-Z]*")
"""Quantities of zero, which every node has."""
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


def build_job(finetunejob: FineTuneJob, settings: Settings, chosen_profile: ChosenProfile | None = None) -> Body:
    """Return the complete Job, with the settings of its compute profile.

    It is created once and not applied again, because Kueue edits some of its fields.

    Raises `pydantic.ValidationError` if `output.uri` is too long with its placeholders replaced.
    """
    completed = apply_defaults(finetunejob, settings.defaults)
    if chosen_profile:
        completed = apply_profile_resources(completed, chosen_profile.profile, finetunejob.spec)
    job = _build_plain_job(completed, settings)
    if chosen_profile:
        job = apply_profile(job, chosen_profile, finetunejob.spec)
    return model_cache.add_init_container(_hide_unrequested_gpus(job), finetunejob.spec)


def _build_plain_job(finetunejob: FineTuneJob, settings: Settings) -> Body:
    """Return the Job without the settings of a compute profile."""
    meta, compute = finetunejob.metadata, finetunejob.spec.compute
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": {key: meta.labels[key] for key in KUEUE_LABELS if key in meta.labels}
            | _build_scratch_label(compute)
            | _build_labels(meta),
            "annotations": _build_annotations(finetunejob.spec, settings),
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


def encode_config(config: TrainerConfig) -> dict[str, str]:
    """Return the variables with the config as JSON, in several parts if it is too long for one.

    Each `$` is doubled: the kubelet expands `$(NAME)` and replaces `$$` by `$`. It is not sufficient to double only the
    `$` of `$(`, because `$$(NAME)` in the config would become `$$$(NAME)`, in which `$(NAME)` is expanded.
    """
    encoded = json.dumps(config.to_json(), ensure_ascii=False, separators=(",", ":"))
    variables = contract.split_variables(contract.CONFIG_ENV, encoded)
    return {name: part.replace("$", "$$") for name, part in variables.items()}


def _build_scratch_label(compute: ComputeSpec) -> dict[str, str]:
    return {SCRATCH_CLAIM_LABEL: "true"} if compute.scratch.storage_class_name else {}


def _build_labels(meta: ObjectMeta) -> dict[str, str]:
    return {**MANAGED_BY_LABEL, JOB_LABEL: meta.name}


def _build_annotations(spec: FineTuneJobSpec, settings: Settings) -> dict[str, str]:
    """Return with what the Job was made, as far as it is read again."""
    annotations = {
        SUSPEND_AT_STEP_ANNOTATION: str(spec.suspend_at_step or ""),
        INSTALLATION_ANNOTATION: settings.installation_id,
        DEFAULT_STARTUP_DEADLINE_ANNOTATION: str(settings.defaults.startup_deadline_seconds or ""),
    }
    return {key: value for key, value in annotations.items() if value}


def _build_pod_spec(finetunejob: FineTuneJob, settings: Settings) -> Body:
    compute = finetunejob.spec.compute
    mounts = volumes.build_mounts(finetunejob.spec) + multi_node.build_mounts(compute)
    container = _build_container(finetunejob, settings, mounts)
    spec: Body = {
        "restartPolicy": "Never",
        "subdomain": multi_node.get_service_name(finetunejob.metadata.name) if compute.nodes > 1 else None,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": compute.termination_grace_period_seconds,
        "securityContext": security.build_pod_security_context(),
        "containers": [container],
        "volumes": list({mount["name"]: {"name": mount["name"], **source} for mount, source in mounts}.values()),
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
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": security.build_container_security_context(),
    }
    policy = settings.trainer_image_pull_policy
    return {**container, "imagePullPolicy": policy} if policy else container


def _build_environment(finetunejob: FineTuneJob) -> dict[str, str]:
    """Return the environment variables of the trainer. No field of a FineTuneJob can add a variable."""
    compute = finetunejob.spec.compute
    environment = encode_config(TrainerConfig.from_manifest(finetunejob.to_json())) | {
        contract.RUN_ID_ENV: finetunejob.metadata.uid,
        contract.JOB_ENV: f"{finetunejob.metadata.namespace}/{finetunejob.metadata.name}",
        contract.OUTCOME_PATH_ENV: TERMINATION_LOG,
        contract.STOP_SECONDS_ENV: str(max(1, compute.termination_grace_period_seconds - _SHUTDOWN_RESERVE_SECONDS)),
    }
    if finetunejob.metadata.creation_timestamp:
        # Immutable, so that a Job that is created again, by any version of the operator, gets the same date.
        environment[contract.TEMPLATE_DATE_ENV] = finetunejob.metadata.creation_timestamp.partition("T")[0]
    if finetunejob.spec.suspend_at_step is not None:
        environment[contract.SUSPEND_AT_STEP_ENV] = str(finetunejob.spec.suspend_at_step)
    return environment | multi_node.build_environment(finetunejob.metadata, compute)


def _hide_unrequested_gpus(job: Body) -> Body:
    """Return the Job with a variable that hides the GPUs of the node from pods that request no device.

    Where the NVIDIA runtime is the default of the node, all GPUs are visible in an image that sets this variable to
    `all`: https://github.com/NVIDIA/k8s-device-plugin/issues/61
    """
    template = job["spec"]["template"]
    (container,) = template["spec"]["containers"]
    resources = {**container["resources"]["requests"], **container["resources"]["limits"]}
    has_devices = any("/" in name and not _ZERO.fullmatch(quantity) for name, quantity in resources.items())
    is_set = any(variable["name"] == VISIBLE_DEVICES_ENV for variable in container["env"])
    if is_set or has_devices or template["spec"].get("resourceClaims"):
        return job
    container = {**container, "env": [*container["env"], {"name": VISIBLE_DEVICES_ENV, "value": "none"}]}
    template = {**template, "spec": {**template["spec"], "containers": [container]}}
    return {**job, "spec": {**job["spec"], "template": template}}


def _build_resource_requirements(compute: ComputeSpec) -> Body:
    gpus = {compute.gpu_resource: str(compute.gpus_per_node)} if compute.gpus_per_node else {}
    return {
        "requests": volumes.build_storage_request(compute) | dict(compute.resources.requests) | gpus,
        "limits": dict(compute.resources.limits) | gpus,
    }
