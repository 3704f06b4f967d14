"""The compute section of the spec: a limited subset of the fields of a pod."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract import Model, ObjectName, Quantity, SecretRef, cel_rules

_DOMAIN, _NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/", r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
QualifiedName = Annotated[str, StringConstraints(pattern=f"^({_DOMAIN})?{_NAME}$", max_length=317)]
DeviceName = Annotated[str, StringConstraints(pattern=f"^{_DOMAIN}{_NAME}$", max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", max_length=63)]


# Keys that components of the cluster use to identify pods, and keys that configure service meshes, injectors and
# runtimes: these can add containers, volumes, identities, devices and networks. Some runtimes turn annotations into
# properties of a systemd unit, which can run commands as root: https://nvd.nist.gov/vuln/detail/CVE-2024-3154
# CEL rules use both patterns, so they must not contain backslashes.
_RESERVED_KEYS = (
    "^(([a-z0-9.-]*[.])?(finetune[.]dev|kubernetes[.]io|k8s[.]io|x-k8s[.]io|istio[.]io|linkerd[.]io|dapr[.]io|hashicorp[.]com"
    "|opentelemetry[.]io|datadoghq[.]com|iam[.]amazonaws[.]com|cncf[.]io|projectcalico[.]org|ovn[.]org"
    "|multus-cni[.]io|kuma[.]io|gke[.]io|azure[.]workload[.]identity|cri-o[.]io|crio[.]io|containerd[.]io|nri[.]io"
    "|noderesource[.]dev)(/|$)|gke-gcsfuse/|io[.](kubernetes|katacontainers|containers|containerd)[.]"
    "|org[.](systemd[.]property|criu)[.]|run[.]oci[.]|dev[.]gvisor[.]|(controller-uid|job-name|pod-template-hash)$)"
)
_ALLOWED_KEYS = (
    "^(cluster-autoscaler[.]kubernetes[.]io/safe-to-evict|kueue[.]x-k8s[.]io/podset-[a-z-]+"
    "|(sidecar[.]istio|linkerd)[.]io/inject|azure[.]workload[.]identity/use)$"
)


def is_reserved_key(key: str) -> bool:
    """Return whether FineTuneJobs must not set a label or an annotation with this key on their pods."""
    return bool(re.match(_RESERVED_KEYS, key)) and not re.match(_ALLOWED_KEYS, key)


def drop_reserved_keys(values: Mapping[str, str]) -> dict[str, str]:
    """Drop keys that the CRD rejects. A stored object may be older than this rule."""
    return {key: value for key, value in values.items() if not is_reserved_key(key)}


def _build_reserved_key_rule(field: str) -> tuple[str, str]:
    rule = f"self.{field}.all(key, !key.matches('{_RESERVED_KEYS}') || key.matches('{_ALLOWED_KEYS}'))"
    key_owners = "Kubernetes, a service mesh, an injector or a container runtime"
    return rule, f"{field}: a key is reserved for {key_owners}; see docs/operations/multi-tenancy.md"


class ResourceRequirements(Model):
    """ResourceRequirements are the compute resources of the trainer container, except GPUs."""

    requests: dict[QualifiedName, Quantity] = Field(default={}, max_length=16)
    """requests are the resources that the scheduler reserves, such as `cpu: "4"` and `memory: 16Gi`."""
    limits: dict[QualifiedName, Quantity] = Field(default={}, max_length=16)
    """limits are the maximum resources that the container may use."""


class Toleration(Model):
    """Toleration allows the pod to run on nodes with a matching taint, as in a Pod."""

    key: QualifiedName | None = None
    """key is the key of the taint. If unset, all keys match."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """operator is the relation between the key and the value: `Equal` compares the value, `Exists` matches all values.
    Defaults to Equal."""
    value: LabelValue | None = None
    """value is the value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """effect is the effect of the taint. If unset, all effects match."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """tolerationSeconds is the number of seconds that a `NoExecute` taint is tolerated. If unset, it is tolerated
    forever."""


class ScratchSpec(Model):
    """Scratch configures the working volume of the pod for data, model and checkpoints."""

    size: Quantity = "50Gi"
    """size is the size of the volume. As a rule of thumb, use the size of the base model plus twice the size of the
    data plus 5 GiB. Defaults to 50Gi."""
    storage_class_name: ObjectName | None = None
    """storageClassName is the storage class of a volume that is created for this pod. If unset, the disk of the node is
    used (`emptyDir`), and the size is also requested as `ephemeral-storage`, so that the node has it."""


class ComputeSpec(Model):
    """Compute configures the pods of the run: a limited subset of the fields of a pod."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            _build_reserved_key_rule("podLabels"),
            _build_reserved_key_rule("podAnnotations"),
            (
                "!has(self.priorityClassName) || !self.priorityClassName.startsWith('system-')",
                "priorityClassName must not start with 'system-', which is reserved for Kubernetes",
            ),
        )
    )

    profile: ObjectName | None = None
    """profile is the name of a compute profile: settings of the pods that an administrator has defined for a kind of
    nodes. If unset, the default profile of the namespace or of the installation is used, if there is one."""
    image: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=512)] | None = None
    """image is the trainer image. If unset, the default image of the operator is used."""
    nodes: int = Field(default=1, ge=1, le=64)
    """nodes is the number of pods that train together, each with `gpusPerNode` GPUs. The number of rows per optimizer
    step is `training.globalBatchSize`, or else `training.batchSize` x `training.gradientAccumulation` x the number of
    GPUs of all pods. Defaults to 1."""
    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """gpusPerNode is the number of GPUs of each pod. Each GPU gets one process (rank). 0 trains on the CPU, for tests
    with tiny models. Defaults to 1."""
    sharding: Literal["none", "full"] = "none"
    """sharding sets what each GPU holds of the base model. `none`: a complete copy. `full`: a part of each layer, which
    the GPUs exchange while they compute (FSDP2), for base models that are larger than the memory of one GPU. Adapter
    and optimizer are small and not sharded. It needs backend transformers or auto, `model.quantization` none, method
    sft or dpo and `lora.variant` lora or rslora. It has no effect on the result, so a suspended run can change it.
    Defaults to none."""
    gpu_resource: DeviceName = "nvidia.com/gpu"
    """gpuResource is the resource name of the GPUs, with its domain, as the device plugin of the cluster registers it.
    Defaults to nvidia.com/gpu."""
    resources: ResourceRequirements = ResourceRequirements()
    """resources are the CPU and memory of each pod."""
    scratch: ScratchSpec = ScratchSpec()
    """scratch configures the working volume of each pod for data, model and checkpoints."""
    model_cache_claim_name: ObjectName | None = None
    """modelCacheClaimName is the name of a PersistentVolumeClaim that base models are cached in, so that they are
    downloaded once. Pods of several nodes need the access mode ReadWriteMany. A base model from a claim is not cached.
    If unset, each pod downloads the base model."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """nodeSelector is the set of labels that a node must have to run the pods."""
    tolerations: list[Toleration] = Field(default=[], max_length=32)
    """tolerations are the taints that the pods tolerate."""
    service_account_name: ObjectName | None = None
    """serviceAccountName is the service account of the pods, for cloud identities (IRSA, Pod Identity, Workload
    Identity). No Kubernetes token is mounted. If unset, `default` is used."""
    image_pull_secrets: list[SecretRef] = Field(default=[], max_length=8)
    """imagePullSecrets are references to the Secrets of the image registry."""
    priority_class_name: ObjectName | None = None
    """priorityClassName is the priority class of the pods."""
    pod_labels: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """podLabels are labels that are added to the pods. Keys of Kubernetes (`kubernetes.io`, `k8s.io`) and of this
    operator are reserved."""
    pod_annotations: dict[QualifiedName, Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default={}, max_length=32
    )
    """podAnnotations are annotations that are added to the pods. Keys of Kubernetes and keys that configure service
    meshes, injectors and container runtimes are reserved."""
    termination_grace_period_seconds: int = Field(default=120, ge=1, le=3600)
    """terminationGracePeriodSeconds is the number of seconds between SIGTERM and SIGKILL. The trainer uses all but 20
    of them to finish its step and to save a checkpoint. Defaults to 120."""
