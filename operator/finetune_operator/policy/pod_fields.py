"""Fields of a pod that a compute profile may set, with the names and the meaning that they have in a Pod.

Every type lists its fields, so that a misspelt name is an error instead of a setting without effect.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from finetune_operator.api.compute import LabelValue, QualifiedName
from finetune_trainer.contract import Model, ObjectName

Text = Annotated[str, StringConstraints(min_length=1, max_length=253)]
Weight = Annotated[int, Field(ge=1, le=100)]


class ProfilePart(Model):
    """Base class of a profile's parts. An unknown field is rejected with the names that are allowed in its place."""

    @model_validator(mode="before")
    @classmethod
    def check_field_names(cls, value: object) -> object:
        """Raise `ValueError` with the first unknown field."""
        allowed = sorted(str(field.alias) for field in cls.model_fields.values())
        unknown = sorted(set(value) - set(allowed)) if isinstance(value, dict) else []
        if unknown:
            raise ValueError(f"unknown field {unknown[0]}; allowed fields: {', '.join(allowed)}")
        return value


class SelectorRequirement(ProfilePart):
    """A condition on a label or a field of a node."""

    key: QualifiedName
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[Text] = Field(default=[], max_length=64)


class NodeSelectorTerm(ProfilePart):
    """Conditions that a node must meet together."""

    match_expressions: list[SelectorRequirement] = Field(default=[], max_length=32)
    match_fields: list[SelectorRequirement] = Field(default=[], max_length=32)


class NodeSelector(ProfilePart):
    """Terms of which a node must meet one."""

    node_selector_terms: list[NodeSelectorTerm] = Field(min_length=1, max_length=32)


class PreferredNodes(ProfilePart):
    """Nodes that are preferred over others, by weight."""

    weight: Weight
    preference: NodeSelectorTerm


class NodeAffinity(ProfilePart):
    """Nodes that the pods must or should run on."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodes] = Field(default=[], max_length=32)


class LabelRequirement(ProfilePart):
    """A condition on a label of a pod or a namespace."""

    key: QualifiedName
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[LabelValue] = Field(default=[], max_length=64)


class LabelSelector(ProfilePart):
    """Labels that pods or namespaces must have."""

    match_labels: dict[QualifiedName, LabelValue] = Field(default={}, max_length=32)
    match_expressions: list[LabelRequirement] = Field(default=[], max_length=32)


class PodAffinityTerm(ProfilePart):
    """Pods, and the topology that is shared with them or not."""

    topology_key: QualifiedName
    label_selector: LabelSelector | None = None
    match_label_keys: list[QualifiedName] = Field(default=[], max_length=16)
    mismatch_label_keys: list[QualifiedName] = Field(default=[], max_length=16)
    namespaces: list[ObjectName] = Field(default=[], max_length=64)
    namespace_selector: LabelSelector | None = None


class PreferredPodAffinity(ProfilePart):
    """A term that is preferred, by weight."""

    weight: Weight
    pod_affinity_term: PodAffinityTerm


class PodAffinity(ProfilePart):
    """Pods that the pods must or should share a topology with, or must or should not."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] = Field(default=[], max_length=32)
    preferred_during_scheduling_ignored_during_execution: list[PreferredPodAffinity] = Field(default=[], max_length=32)


class Affinity(ProfilePart):
    """The affinity of the pods."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class TopologySpreadConstraint(ProfilePart):
    """How pods are spread over a topology."""

    max_skew: int = Field(ge=1, le=1000)
    topology_key: QualifiedName
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: LabelSelector | None = None
    match_label_keys: list[QualifiedName] = Field(default=[], max_length=16)
    min_domains: int | None = Field(default=None, ge=1, le=10_000)
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    node_taints_policy: Literal["Honor", "Ignore"] | None = None


class DnsOption(ProfilePart):
    """An option of the resolver."""

    name: Text
    value: Text | None = None


class DnsConfig(ProfilePart):
    """Settings of the resolver, in addition to those of the cluster."""

    nameservers: list[Text] = Field(default=[], max_length=3)
    searches: list[Text] = Field(default=[], max_length=32)
    options: list[DnsOption] = Field(default=[], max_length=16)


class HostAlias(ProfilePart):
    """Host names of an address, for `/etc/hosts`."""

    ip: Text
    hostnames: list[Text] = Field(min_length=1, max_length=32)


class ResourceClaim(ProfilePart):
    """A claim of Dynamic Resource Allocation, or a template that one is created from for each pod."""

    name: ObjectName
    resource_claim_name: ObjectName | None = None
    resource_claim_template_name: ObjectName | None = None

    @model_validator(mode="after")
    def check_source(self) -> ResourceClaim:
        """Raise `ValueError` unless there is exactly one source."""
        if bool(self.resource_claim_name) == bool(self.resource_claim_template_name):
            raise ValueError("set exactly one of resourceClaimName and resourceClaimTemplateName")
        return self


class ResourceClaimRef(ProfilePart):
    """A claim of the pod that the container uses."""

    name: ObjectName
    request: ObjectName | None = None
