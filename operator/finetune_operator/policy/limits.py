"""Bounds on what FineTuneJobs may request, set by a platform engineer for the installation."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_operator.api.compute import LabelValue, QualifiedName
from finetune_trainer.contract import Model

_SEGMENT_PATTERN = r"[^*/\s$]*(\*[^*/\s$]+)*\*?"  # no two consecutive asterisks
_PATH_PATTERN = rf"(/{_SEGMENT_PATTERN})*(/\*\*)?"

NamePattern = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.*-]+$", max_length=253)]
"""Pattern for the name of an object."""
KeyPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/*-]+$", max_length=317)]
"""Pattern for the key of a label, an annotation or a taint, or for the name of a resource."""
ImagePattern = Annotated[
    str,
    StringConstraints(pattern=rf"^([^*/\s$]+{_PATH_PATTERN}|[^*/:@\s$]+[:@]{_SEGMENT_PATTERN})$", max_length=512),
]
"""Pattern for an image reference. There is no wildcard before the first `/`: `registry.example*` would match
`registry.example.evil`."""
ModelPattern = Annotated[
    str, StringConstraints(pattern=rf"^(hf|s3|pvc)://(\*\*|[^*/\s$]+{_PATH_PATTERN})$", max_length=1024)
]
"""Pattern for the URI of a model. It contains the complete name of an organization, bucket or claim, or `**` for all
models of a scheme."""
DatasetPattern = Annotated[
    str,
    StringConstraints(
        pattern=rf"^(hf://\*\*|(hf://datasets/|s3://|pvc://)(\*\*|[^*/\s$]+{_PATH_PATTERN}))$", max_length=1024
    ),
]
"""Pattern for the URI of data. It contains the complete name of an organization, bucket or claim, or `**`."""
EndpointPattern = Annotated[str, StringConstraints(pattern=r"^(aws|https?://(\*\.)?[^*\s/?#@\\]+)$", max_length=512)]
"""Pattern for the URL of an object store, or `aws`. Only `*.` before a domain is allowed as a wildcard."""
TrackerPattern = Annotated[str, StringConstraints(pattern=r"^(wandb|https?://(\*\.)?[^*\s/?#@\\]+)$", max_length=512)]
"""Pattern for the URL of a tracking server without a path, or `wandb`. Only `*.` before a domain is allowed as a
wildcard."""

GraderEndpointPattern = Annotated[str, StringConstraints(pattern=r"^https?://(\*\.)?[^*\s/?#@\\]+$", max_length=512)]
"""Pattern for the URL of a server of graders without a path. Only `*.` before a domain is allowed as a wildcard."""


class Bounds(Model):
    """Bounds on what FineTuneJobs may request. An empty list or null sets no bound.

    In patterns, `*` matches letters, digits, `.`, `_` and `-`, and `**` matches all characters.
    """

    allowed_namespaces: list[NamePattern] = Field(default=[], max_length=100)
    """allowedNamespaces are the watched namespaces in which FineTuneJobs may run."""
    denied_namespaces: list[NamePattern] = Field(default=[], max_length=100)
    """deniedNamespaces are the namespaces in which no FineTuneJobs may run."""
    allowed_images: list[ImagePattern] = Field(default=[], max_length=100)
    """allowedImages limits `compute.image`, as a complete reference. The trainer image of the operator is always
    allowed."""
    allowed_service_accounts: list[NamePattern] = Field(default=[], max_length=100)
    """allowedServiceAccounts limits `compute.serviceAccountName`. If that is unset, it counts as `default`."""
    allowed_secrets: list[NamePattern] = Field(default=[], max_length=100)
    """allowedSecrets limits all Secrets that a FineTuneJob refers to."""
    allowed_config_maps: list[NamePattern] = Field(default=[], max_length=100)
    """allowedConfigMaps limits all ConfigMaps that a FineTuneJob refers to."""
    allowed_storage_endpoints: list[EndpointPattern] = Field(default=[], max_length=100)
    """allowedStorageEndpoints limits `storage.endpoint`. If that is unset, it counts as `aws`."""
    allowed_trackers: list[TrackerPattern] = Field(default=[], max_length=100)
    """allowedTrackers limits `tracking.uri`, without its path. If that is unset with tool wandb, it counts as `wandb`.
    If this list is empty and `allowedSecrets` is not, FineTuneJobs with a `tracking.uri` must not refer to a Secret for
    it."""
    allowed_grader_endpoints: list[GraderEndpointPattern] = Field(default=[], max_length=100)
    """allowedGraderEndpoints limits `evaluation.endpoints[].uri`, without its path. If this list is empty and
    `allowedSecrets` is not, endpoints must not refer to a Secret."""
    allowed_models: list[ModelPattern] = Field(default=[], max_length=100)
    """allowedModels limits `model.uri`, and with it the volume claim that the model is read from, `model.adapterURI`
    and the adapters in `evaluation.baselines`. It applies to the repository, not to the commit."""
    allowed_datasets: list[DatasetPattern] = Field(default=[], max_length=100)
    """allowedDatasets limits the URIs in `dataset.sources`, `dataset.validation.sources`, `evaluation.test.sources` and
    `evaluation.bias.pairsURI`, and with them the volume claims that data is read from. A pattern for the hub applies to
    the repository, not to the revision and the path in it."""
    allowed_model_cache_claims: list[NamePattern] = Field(default=[], max_length=100)
    """allowedModelCacheClaims limits `compute.modelCacheClaimName`, the claim that a pod of the run may write to. If
    this list is empty and `allowedModels` or `allowedDatasets` is not, no model cache is allowed, because those limit
    the claims that may be read."""
    allowed_priority_classes: list[NamePattern] = Field(default=[], max_length=100)
    """allowedPriorityClasses limits `compute.priorityClassName` and the label of Kueue's priority class."""
    allowed_tolerations: list[KeyPattern] = Field(default=[], max_length=100)
    """allowedTolerations limits the keys in `compute.tolerations`. Only `**` allows a toleration without a key."""
    allowed_gpu_resources: list[KeyPattern] = Field(default=[], max_length=100, alias="allowedGPUResources")
    """allowedGPUResources limits `compute.gpuResource`. If it is set, `compute.resources` may contain only the devices
    in `allowedResources`."""
    allowed_resources: list[KeyPattern] = Field(default=[], max_length=100)
    """allowedResources limits the devices in `compute.resources`, such as `rdma/hca`, except GPUs. Without
    `allowedGPUResources` it also limits `compute.gpuResource`, except its default."""
    allowed_pod_labels: list[KeyPattern] = Field(default=[], max_length=100)
    """allowedPodLabels limits the keys of `compute.podLabels`. Reserved keys are never allowed."""
    allowed_pod_annotations: list[KeyPattern] = Field(default=[], max_length=100)
    """allowedPodAnnotations limits the keys of `compute.podAnnotations`. Reserved keys are never allowed."""
    allowed_profiles: list[NamePattern] = Field(default=[], max_length=100)
    """allowedProfiles limits `compute.profile`. The default profile of the namespace is always allowed. A profile may
    contain what other bounds do not allow."""
    required_node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """requiredNodeSelector are the labels that `compute.nodeSelector` must contain, unless the compute profile sets
    them."""
    max_gpus: int | None = Field(default=None, ge=0, alias="maxGPUs")
    """maxGPUs is the maximum number of GPUs of all pods together. If it is set, `compute.resources` may contain only
    the devices in `allowedResources`."""
    max_nodes: int | None = Field(default=None, ge=1)
    """maxNodes is the maximum of `compute.nodes`."""


def matches_pattern(value: str, pattern: str) -> bool:
    """Return whether the pattern matches the complete value.

    `*` does not match `/`, `:` and `@`, so that a pattern for a tag matches no digest, which would replace the tag.
    """
    wildcards = {"*": r"[A-Za-z0-9._-]*", "**": r".*"}
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.fullmatch("".join(wildcards.get(part, re.escape(part)) for part in parts), value, re.DOTALL) is not None
