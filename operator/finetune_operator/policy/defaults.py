"""Defaults for fields that FineTuneJobs leave unset, set by a platform engineer for the installation.

None of them affects the trained model: compute and storage settings are not part of the digest of a run.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import Field

from finetune_operator.api import FineTuneJob, StorageSpec
from finetune_operator.api.compute import (
    ComputeSpec,
    LabelValue,
    QualifiedName,
    ResourceRequirements,
    ScratchSpec,
    Toleration,
)
from finetune_trainer.contract import Model, ObjectName, SecretRef

PartT = TypeVar("PartT", StorageSpec, ComputeSpec, ScratchSpec)


class Defaults(Model):
    """Defaults that are applied when the Job is created. The FineTuneJob and existing Jobs are not changed."""

    storage: StorageSpec = StorageSpec()
    """storage sets the fields of `storage` in FineTuneJobs without `storage.endpoint`, so that credentials are sent
    only to the object store that they belong to."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """nodeSelector is used if `compute.nodeSelector` is empty."""
    tolerations: list[Toleration] = Field(default=[], max_length=32)
    """tolerations are used if `compute.tolerations` is empty."""
    service_account_name: ObjectName | None = None
    """serviceAccountName is used if `compute.serviceAccountName` is unset."""
    image_pull_secrets: list[SecretRef] = Field(default=[], max_length=8)
    """imagePullSecrets are used if `compute.imagePullSecrets` is empty."""
    priority_class_name: ObjectName | None = None
    """priorityClassName is used if `compute.priorityClassName` is unset."""
    resources: ResourceRequirements = ResourceRequirements()
    """resources are the requests and limits of each resource that `compute.resources` does not contain, so that
    trainers are not the first pods that a node evicts."""
    startup_deadline_seconds: int | None = Field(default=None, ge=1, le=365 * 24 * 3600)
    """startupDeadlineSeconds is used if neither the FineTuneJob nor its compute profile has one."""
    scratch_storage_class_name: ObjectName | None = None
    """scratchStorageClassName is used if `compute.scratch.storageClassName` is unset."""
    allow_node_identity: bool = False
    """allowNodeIdentity allows trainers without a credentials Secret to use the identity of their node (EC2 instance
    metadata)."""


def apply_defaults(finetunejob: FineTuneJob, defaults: Defaults) -> FineTuneJob:
    """Return the FineTuneJob with the defaults applied to its unset fields."""
    spec = finetunejob.spec
    storage = spec.storage if spec.storage.endpoint else _fill_unset_fields(spec.storage, dict(defaults.storage))
    compute = _fill_unset_fields(spec.compute, dict(defaults))
    compute = compute.model_copy(update={"resources": _add_resources(spec.compute.resources, defaults.resources)})
    if defaults.scratch_storage_class_name:
        scratch = _fill_unset_fields(spec.compute.scratch, {"storage_class_name": defaults.scratch_storage_class_name})
        compute = compute.model_copy(update={"scratch": scratch})
    return finetunejob.model_copy(update={"spec": spec.model_copy(update={"storage": storage, "compute": compute})})


def _add_resources(resources: ResourceRequirements, defaults: ResourceRequirements) -> ResourceRequirements:
    """Return the resources with the defaults of those that are neither requested nor limited.

    Request and limit of a resource belong together, because a request must not exceed its limit.
    """
    names = {*resources.requests, *resources.limits}
    requests = {name: value for name, value in defaults.requests.items() if name not in names}
    limits = {name: value for name, value in defaults.limits.items() if name not in names}
    return resources.model_copy(update={"requests": requests | resources.requests, "limits": limits | resources.limits})


def _fill_unset_fields(part: PartT, defaults: dict[str, Any]) -> PartT:
    """Return `part` with the defaults for its unset fields.

    A field at the default of the API counts as unset: the API server writes those defaults, so the two cases cannot be
    distinguished.
    """
    fields, values = type(part).model_fields, dict(part)
    applicable = {name: value for name, value in defaults.items() if value and name in fields}
    unset = {name: value for name, value in applicable.items() if values[name] == fields[name].get_default()}
    return part.model_copy(update=unset)
