"""What FineTuneJobs get where they leave it open, as a platform engineer sets it once. Pure.

None of it changes what is learnt: where it is worked on and where the result lies are no part of a run's digest.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import Field

from finetune_operator.api import FineTuneJob, StorageSpec
from finetune_operator.api.compute import ComputeSpec, LabelValue, QualifiedName, ScratchSpec, Toleration
from finetune_trainer.contract import Model, ObjectName, SecretRef

PartT = TypeVar("PartT", StorageSpec, ComputeSpec, ScratchSpec)


class Defaults(Model):
    """Goes into the Job when it is made; the FineTuneJob is left as it is, and so is a Job that is there."""

    storage: StorageSpec = StorageSpec()
    """`storage`, field by field, of FineTuneJobs without `storage.endpoint`: keys go nowhere but to their own store."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """`compute.nodeSelector` if it is empty."""
    tolerations: list[Toleration] = Field(default=[], max_length=32)
    """`compute.tolerations` if there are none."""
    service_account_name: ObjectName | None = None
    """`compute.serviceAccountName`."""
    image_pull_secrets: list[SecretRef] = Field(default=[], max_length=8)
    """`compute.imagePullSecrets` if there are none."""
    priority_class_name: ObjectName | None = None
    """`compute.priorityClassName`."""
    scratch_storage_class_name: ObjectName | None = None
    """`compute.scratch.storageClassName`."""
    allow_node_identity: bool = False
    """Whether trainers without a credentials Secret may use the identity of their node (EC2 instance metadata)."""


def apply_defaults(finetunejob: FineTuneJob, defaults: Defaults) -> FineTuneJob:
    """The FineTuneJob as if it had asked for them."""
    spec = finetunejob.spec
    storage = spec.storage if spec.storage.endpoint else _fill_unset_fields(spec.storage, dict(defaults.storage))
    compute = _fill_unset_fields(spec.compute, dict(defaults))
    if defaults.scratch_storage_class_name:
        scratch = _fill_unset_fields(spec.compute.scratch, {"storage_class_name": defaults.scratch_storage_class_name})
        compute = compute.model_copy(update={"scratch": scratch})
    return finetunejob.model_copy(update={"spec": spec.model_copy(update={"storage": storage, "compute": compute})})


def _fill_unset_fields(part: PartT, defaults: dict[str, Any]) -> PartT:
    """A field at the API's own default is open: the API server writes those, so nobody can tell."""
    fields, values = type(part).model_fields, dict(part)
    applicable = {name: value for name, value in defaults.items() if value and name in fields}
    unset = {name: value for name, value in applicable.items() if values[name] == fields[name].get_default()}
    return part.model_copy(update=unset)
