"""The part of the API that describes the training pod: a bounded subset of a pod's fields. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract import Model, ObjectName, SecretRef, rules

Quantity = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$", max_length=32),
]
_DOMAIN, _NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/", r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
QualifiedName = Annotated[str, StringConstraints(pattern=f"^({_DOMAIN})?{_NAME}$", max_length=317)]
DeviceName = Annotated[str, StringConstraints(pattern=f"^{_DOMAIN}{_NAME}$", max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", max_length=63)]


# Keys by which the cluster's own parts know pods, and by which meshes, injectors and runtimes take orders: more
# containers, volumes, identities, devices, networks. Some runtimes turn annotations into properties of a systemd unit,
# which may run commands as root: https://nvd.nist.gov/vuln/detail/CVE-2024-3154
# Both are read by CEL, too: no backslashes.
_RESERVED = (
    "^(([a-z0-9.-]*[.])?(finetune[.]dev|kubernetes[.]io|k8s[.]io|x-k8s[.]io|istio[.]io|linkerd[.]io|dapr[.]io|hashicorp[.]com"
    "|opentelemetry[.]io|datadoghq[.]com|iam[.]amazonaws[.]com|cncf[.]io|projectcalico[.]org|ovn[.]org"
    "|multus-cni[.]io|kuma[.]io|gke[.]io|azure[.]workload[.]identity|cri-o[.]io|crio[.]io|containerd[.]io|nri[.]io"
    "|noderesource[.]dev)(/|$)|gke-gcsfuse/|io[.](kubernetes|katacontainers|containers|containerd)[.]"
    "|org[.](systemd[.]property|criu)[.]|run[.]oci[.]|dev[.]gvisor[.]|(controller-uid|job-name|pod-template-hash)$)"
)
_HARMLESS = (
    "^(cluster-autoscaler[.]kubernetes[.]io/safe-to-evict|kueue[.]x-k8s[.]io/podset-[a-z-]+"
    "|(sidecar[.]istio|linkerd)[.]io/inject|azure[.]workload[.]identity/use)$"
)


def is_reserved(key: str) -> bool:
    """Whether no FineTuneJob may set a label or an annotation of that key on its pods."""
    return bool(re.match(_RESERVED, key)) and not re.match(_HARMLESS, key)


def _unreserved(field: str) -> tuple[str, str]:
    rule = f"self.{field}.all(key, !key.matches('{_RESERVED}') || key.matches('{_HARMLESS}'))"
    whose = "Kubernetes, a mesh, an injector or a runtime"
    return rule, f"{field}: a key is reserved for {whose}; see docs/operations/multi-tenancy.md"


class ResourceRequirements(Model):
    """Compute resources of the trainer container, GPUs apart."""

    requests: dict[QualifiedName, Quantity] = Field(default={}, max_length=16)
    """What the scheduler sets aside, such as `cpu: "4"` and `memory: 16Gi`."""
    limits: dict[QualifiedName, Quantity] = Field(default={}, max_length=16)
    """What the container may use at most."""


class Toleration(Model):
    """Lets the pod onto nodes with a matching taint; as in a Pod."""

    key: QualifiedName | None = None
    """Taint key; absent matches every key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How `value` is compared."""
    value: LabelValue | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent matches every effect."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """How long a `NoExecute` taint is tolerated."""


class Scratch(Model):
    """The volume that data, model and checkpoints are worked on."""

    size: Quantity = "50Gi"
    """Size. Rule of thumb: the base model, twice the data, and 5 GiB."""
    storage_class_name: ObjectName | None = None
    """Storage class of a volume made for this pod. Absent means the node's own disk (`emptyDir`)."""


class Compute(Model):
    """The pod that trains: a bounded subset of a pod's fields."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _unreserved("podLabels"),
            _unreserved("podAnnotations"),
            (
                "!has(self.priorityClassName) || !self.priorityClassName.startsWith('system-')",
                "priorityClassName must not be one of Kubernetes' own",
            ),
        )
    )

    image: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=512)] | None = None
    """Trainer image. Absent means the operator's default."""
    nodes: int = Field(default=1, ge=1, le=64)
    """Pods that train together, each with `gpusPerNode` GPUs. An optimizer step sees `training.batchSize` x
    `training.gradientAccumulation` x GPUs of all pods examples."""
    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """GPUs of each pod, with a worker process each. 0 trains on the CPU, for trials with tiny models."""
    gpu_resource: DeviceName = "nvidia.com/gpu"
    """Resource name that the cluster's device plugin announces, with its domain."""
    resources: ResourceRequirements = ResourceRequirements()
    """CPU and memory of the pod."""
    scratch: Scratch = Scratch()
    """The volume that data, model and checkpoints are worked on."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """Labels that the node must have."""
    tolerations: list[Toleration] = Field(default=[], max_length=32)
    """Taints that the pod tolerates."""
    service_account_name: ObjectName | None = None
    """Service account of the pod, for cloud identities (IRSA, Pod Identity, Workload Identity). No Kubernetes token is
    mounted. Absent means `default`."""
    image_pull_secrets: list[SecretRef] = Field(default=[], max_length=8)
    """Secrets for the image registry."""
    priority_class_name: ObjectName | None = None
    """Priority class of the pod."""
    pod_labels: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """Labels added to the pod. Keys of Kubernetes (`kubernetes.io`, `k8s.io`) and of this operator are reserved."""
    pod_annotations: dict[QualifiedName, Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default={}, max_length=32
    )
    """Annotations added to the pod. Keys of Kubernetes, and those by which meshes, injectors and container runtimes
    take orders, are reserved."""
    termination_grace_period_seconds: int = Field(default=120, ge=1, le=3600)
    """Seconds between being asked to stop and being killed. The trainer takes all but 20 of them to finish its step and
    to store a checkpoint."""
