"""Compute profiles: named settings of trainer pods that administrators define for a kind of nodes.

The file with all profiles is JSON. The chart renders it from its values into a ConfigMap.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, StringConstraints, ValidationError, model_validator

from finetune_operator.api import ConfigMapKeyRef
from finetune_operator.api.compute import LabelValue, QualifiedName, Toleration
from finetune_operator.policy.pod_fields import (
    Affinity,
    DnsConfig,
    HostAlias,
    ProfilePart,
    ResourceClaim,
    ResourceClaimRef,
    TopologySpreadConstraint,
)
from finetune_trainer import contract
from finetune_trainer.contract import ObjectName, Quantity

CA_VARIABLES = (contract.CA_BUNDLE_ENV, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables with the path of a CA bundle. boto3 and the trainer's S3 client read the first, the hub's client (httpx and
hf_xet) and the core of W&B (Go) the second, MLflow and W&B (requests) the third. The last is for tools such as git."""
_HASH_LENGTH = 16
_SECRET_VARIABLES = (
    *contract.S3_CREDENTIALS_KEYS,
    contract.HUB_TOKEN_KEY,
    *(key for keys in contract.TRACKING_KEYS.values() for key in keys),
)
_RESERVED_VARIABLES = frozenset(
    {
        "HOME",
        "TMPDIR",
        "AWS_EC2_METADATA_DISABLED",
        contract.CA_BUNDLE_ENV,
        contract.NODE_RANK_ENV,
        *_SECRET_VARIABLES,
    }
)
_RESERVED_KEYS = re.compile(
    r"((.*\.)?finetune\.dev(/|$)|batch\.kubernetes\.io/|(controller-uid|job-name|app\.kubernetes\.io/managed-by)$"
    r"|.*\bsecurity\.(alpha|beta)\.kubernetes\.io(/|$))"
)
"""Keys that identify the pods of a Job, and those that once turned off AppArmor and seccomp."""

AnnotationValue = Annotated[str, StringConstraints(max_length=8192)]


class ProfilesError(ValueError):
    """Raised for a file of profiles that cannot be read or is invalid. The message names the path of each field."""


class Variable(ProfilePart):
    """An environment variable of the trainer."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """name is the name of the variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] = ""
    """value is the value of the variable."""

    @model_validator(mode="after")
    def check_name(self) -> Variable:
        """Raise `ValueError` for a variable that the operator sets, or that would contain a secret."""
        if self.name in _RESERVED_VARIABLES or self.name.startswith("FINETUNE_"):
            raise ValueError(
                f"{self.name} is reserved; the operator sets it, or a Secret of the FineTuneJob contains it"
            )
        return self


class ContainerResources(ProfilePart):
    """Resources of the trainer container. GPUs are requested by `compute.gpusPerNode`."""

    requests: dict[QualifiedName, Quantity] = Field(default={}, max_length=32)
    """requests are the resources that the scheduler reserves."""
    limits: dict[QualifiedName, Quantity] = Field(default={}, max_length=32)
    """limits are the maximum resources, and the devices, such as `vpc.amazonaws.com/efa`."""
    claims: list[ResourceClaimRef] = Field(default=[], max_length=16)
    """claims are the claims in `podSpec.resourceClaims` that the container uses."""


class ContainerFields(ProfilePart):
    """Fields of the trainer container."""

    env: list[Variable] = Field(default=[], max_length=128)
    """env are environment variables. Those of the operator and those of Secrets cannot be set."""
    resources: ContainerResources = ContainerResources()
    """resources are added to those of the FineTuneJob. Resources that it requests or limits itself keep its values."""
    add_capabilities: list[Literal["IPC_LOCK", "NET_RAW", "PERFMON", "SYS_NICE", "SYS_RESOURCE"]] = Field(
        default=[], max_length=5
    )
    """addCapabilities are capabilities that the container gets. Pod Security `restricted` and `baseline` reject such
    pods."""


class PodFields(ProfilePart):
    """Fields of the pods' spec, as in a Pod. There are no others: a profile adds no container and no host access."""

    runtime_class_name: ObjectName | None = None
    """runtimeClassName is the runtime class, such as `nvidia`."""
    scheduler_name: ObjectName | None = None
    """schedulerName is the scheduler of the pods."""
    priority_class_name: ObjectName | None = None
    """priorityClassName is used if the FineTuneJob has none."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """nodeSelector is merged with that of the FineTuneJob."""
    tolerations: list[Toleration] = Field(default=[], max_length=32)
    """tolerations are added to those of the FineTuneJob."""
    affinity: Affinity | None = None
    """affinity is the affinity to nodes and pods. `matchLabelKeys: [finetune.dev/job]` selects the pods of a run."""
    topology_spread_constraints: list[TopologySpreadConstraint] = Field(default=[], max_length=16)
    """topologySpreadConstraints spread the pods."""
    resource_claims: list[ResourceClaim] = Field(default=[], max_length=16)
    """resourceClaims are claims of Dynamic Resource Allocation."""
    dns_config: DnsConfig | None = None
    """dnsConfig are settings of the resolver."""
    host_aliases: list[HostAlias] = Field(default=[], max_length=64)
    """hostAliases are entries of `/etc/hosts`."""


class Profile(ProfilePart):
    """Settings of trainer pods. Maps merge by key, lists append, and scalars of the FineTuneJob win."""

    pod_labels: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    """podLabels are labels of the pods, also with keys that FineTuneJobs must not use."""
    pod_annotations: dict[QualifiedName, AnnotationValue] = Field(default={}, max_length=32)
    """podAnnotations are annotations of the pods, also with keys that FineTuneJobs must not use."""
    pod_spec: PodFields = PodFields()
    """podSpec are fields of the pods' spec."""
    container: ContainerFields = ContainerFields()
    """container are fields of the trainer container."""
    shared_memory: Quantity | None = None
    """sharedMemory is the size of `/dev/shm`. It counts as memory of the container. If unset, pods with several GPUs
    have 2Gi, and others the default of the container runtime."""
    ca_config_map_ref: ConfigMapKeyRef | None = None
    """caConfigMapRef is a ConfigMap in the namespace of the FineTuneJob with the PEM certificates of all authorities
    that the trainer trusts: for S3, the hub and the trackers. `storage.caConfigMapRef` has precedence for S3."""
    startup_deadline_seconds: int | None = Field(default=None, ge=1, le=365 * 24 * 3600)
    """startupDeadlineSeconds is used if the FineTuneJob has none."""
    enforce: bool = False
    """enforce makes the values of the profile win over those of the FineTuneJob, also in maps. Defaults to false."""

    @model_validator(mode="after")
    def check_consistency(self) -> Profile:
        """Raise `ValueError` for reserved keys, repeated variables, and claims that do not exist."""
        for field, keys in (("podLabels", self.pod_labels), ("podAnnotations", self.pod_annotations)):
            if reserved := sorted(filter(_RESERVED_KEYS.match, keys)):
                raise ValueError(f"{field}: {reserved[0]} is reserved for the operator and the Job controller")
        names = [variable.name for variable in self.container.env]
        names += CA_VARIABLES if self.ca_config_map_ref else ()
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"container.env: {repeated[0]} is set twice (caConfigMapRef sets {', '.join(CA_VARIABLES)})"
            )
        claims = {claim.name for claim in self.pod_spec.resource_claims}
        if missing := sorted({claim.name for claim in self.container.resources.claims} - claims):
            raise ValueError(f"container.resources.claims: {missing[0]} is not in podSpec.resourceClaims")
        return self

    def compute_hash(self) -> str:
        """Return a short digest of the settings. Unset fields and their defaults give the same digest."""
        content = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_HASH_LENGTH]


class ChosenProfile(NamedTuple):
    """The profile of a FineTuneJob."""

    name: str
    profile: Profile


class Profiles(ProfilePart):
    """All profiles of the installation, and which FineTuneJobs use them by default."""

    profiles: dict[ObjectName, Profile] = Field(default={}, max_length=200)
    """profiles are the profiles by name."""
    default_profile: ObjectName | None = None
    """defaultProfile is the profile of FineTuneJobs that name none."""
    namespace_profiles: dict[ObjectName, ObjectName] = Field(default={}, max_length=2000)
    """namespaceProfiles are the default profiles of namespaces, instead of `defaultProfile`."""

    @model_validator(mode="after")
    def check_references(self) -> Profiles:
        """Raise `ValueError` for a default that is not a profile."""
        references = {f"namespaceProfiles.{key}": name for key, name in self.namespace_profiles.items()}
        references |= {"defaultProfile": self.default_profile} if self.default_profile else {}
        for field, name in references.items():
            if name not in self.profiles:
                raise ValueError(f"{field}: there is no profile {name}; profiles: {', '.join(sorted(self.profiles))}")
        return self

    def get_default_name(self, namespace: str) -> str | None:
        """Return the name of the profile that is used in a namespace by default, or None."""
        return self.namespace_profiles.get(namespace, self.default_profile)

    def choose(self, name: str | None, namespace: str) -> ChosenProfile | None:
        """Return the profile with this name, or without a name the default of the namespace, or None.

        Raises `KeyError` if there is no profile with this name.
        """
        chosen_name = name or self.get_default_name(namespace)
        return ChosenProfile(chosen_name, self.profiles[chosen_name]) if chosen_name else None


def parse_profiles(content: bytes) -> Profiles:
    """Return the profiles in a file. Raises `ProfilesError`, whose message is one line."""
    try:
        return Profiles.model_validate_json(content, strict=True)
    except ValidationError as error:
        details = [_format_error(detail["loc"], detail["msg"]) for detail in error.errors()[:5]]
        raise ProfilesError("; ".join(details)) from error


def _format_error(path: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, path)) or 'the file'}: {message.removeprefix('Value error, ')}"
