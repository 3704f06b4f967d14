"""What FineTuneJobs may ask for, as a platform engineer sets it once. Pure."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_operator.api.compute import LabelValue, QualifiedName
from finetune_trainer.contract import Model

_SEGMENT_PATTERN = r"[^*/\s$]*(\*[^*/\s$]+)*\*?"  # never two asterisks in a row
_PATH_PATTERN = rf"(/{_SEGMENT_PATTERN})*(/\*\*)?"

NamePattern = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.*-]+$", max_length=253)]
"""Name of an object."""
KeyPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/*-]+$", max_length=317)]
"""Key of a label, an annotation or a taint, or name of a resource."""
ImagePattern = Annotated[
    str,
    StringConstraints(pattern=rf"^([^*/\s$]+{_PATH_PATTERN}|[^*/:@\s$]+[:@]{_SEGMENT_PATTERN})$", max_length=512),
]
"""Reference of an image. No wildcard before the first `/`: `registry.example*` would let `registry.example.evil` in."""
ModelPattern = Annotated[
    str, StringConstraints(pattern=rf"^(hf|s3|pvc)://(\*\*|[^*/\s$]+{_PATH_PATTERN})$", max_length=1024)
]
"""URI of a model. Organisation, bucket or claim in full, or `**` for all of a scheme."""
EndpointPattern = Annotated[str, StringConstraints(pattern=r"^(aws|https?://(\*\.)?[^*\s/?#@\\]+)$", max_length=512)]
"""URL of a store, with `*.` at most for what stands before a domain; or `aws`."""
TrackerPattern = Annotated[str, StringConstraints(pattern=r"^(wandb|https?://(\*\.)?[^*\s/?#@\\]+)$", max_length=512)]
"""URL of a tracker's server without a path, with `*.` at most for what stands before a domain; or `wandb`."""


class Bounds(Model):
    """What FineTuneJobs may ask for. An empty list, or none, is no bound.

    In patterns `*` stands for letters, digits, `.`, `_` and `-`, `**` for anything.
    """

    allowed_namespaces: list[NamePattern] = Field(default=[], max_length=100)
    """Namespaces in which FineTuneJobs may run, of those that are watched."""
    denied_namespaces: list[NamePattern] = Field(default=[], max_length=100)
    """Namespaces in which none may."""
    allowed_images: list[ImagePattern] = Field(default=[], max_length=100)
    """`compute.image`, the whole reference. The operator's own trainer image always may."""
    allowed_service_accounts: list[NamePattern] = Field(default=[], max_length=100)
    """`compute.serviceAccountName`; absent asks for `default`."""
    allowed_secrets: list[NamePattern] = Field(default=[], max_length=100)
    """Every Secret that a FineTuneJob names."""
    allowed_config_maps: list[NamePattern] = Field(default=[], max_length=100)
    """Every ConfigMap that a FineTuneJob names."""
    allowed_storage_endpoints: list[EndpointPattern] = Field(default=[], max_length=100)
    """`storage.endpoint`; absent asks for `aws`."""
    allowed_trackers: list[TrackerPattern] = Field(default=[], max_length=100)
    """`tracking.uri`, without its path; absent with tool wandb asks for `wandb`. Where this is empty and
    `allowed_secrets` is not, an address of one's own gets no Secret."""
    allowed_models: list[ModelPattern] = Field(default=[], max_length=100)
    """`model.uri`, and so also which volume claims are read, and `model.adapterURI`: the repository, not the commit."""
    allowed_priority_classes: list[NamePattern] = Field(default=[], max_length=100)
    """`compute.priorityClassName`, and Kueue's label for its own."""
    allowed_tolerations: list[KeyPattern] = Field(default=[], max_length=100)
    """Keys of taints in `compute.tolerations`; only `**` allows one without a key."""
    allowed_gpu_resources: list[KeyPattern] = Field(default=[], max_length=100, alias="allowedGPUResources")
    """`compute.gpuResource`. `compute.resources` may then name no devices but those of `allowedResources`."""
    allowed_resources: list[KeyPattern] = Field(default=[], max_length=100)
    """Devices that `compute.resources` may name, such as `rdma/hca`; GPUs are none of them. Without
    `allowedGPUResources` it bounds `compute.gpuResource` too, but for the default."""
    allowed_pod_labels: list[KeyPattern] = Field(default=[], max_length=100)
    """Keys of `compute.podLabels`. Reserved ones never may."""
    allowed_pod_annotations: list[KeyPattern] = Field(default=[], max_length=100)
    """Keys of `compute.podAnnotations`. Reserved ones never may."""
    required_node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """What `compute.nodeSelector` has to contain."""
    max_gpus: int | None = Field(default=None, ge=0, alias="maxGPUs")
    """GPUs of all pods together. `compute.resources` may then name no devices but those of `allowedResources`."""
    max_nodes: int | None = Field(default=None, ge=1)
    """`compute.nodes`."""


def matches_pattern(value: str, pattern: str) -> bool:
    """Whether the whole value is what the pattern stands for.

    `*` crosses no `/`, `:` or `@`, so a pattern for a tag lets no digest in, which would count in place of the tag.
    """
    wildcards = {"*": r"[A-Za-z0-9._-]*", "**": r".*"}
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.fullmatch("".join(wildcards.get(part, re.escape(part)) for part in parts), value, re.DOTALL) is not None
