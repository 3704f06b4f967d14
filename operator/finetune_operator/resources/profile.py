"""Merge of a compute profile into the Job that was built from a FineTuneJob and the defaults of the installation.

Values take effect in this order, of which the last wins: default of the installation, profile, FineTuneJob, enforced
profile. Maps merge by key and lists append.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from finetune_operator.api import FineTuneJob, FineTuneJobSpec
from finetune_operator.api.compute import is_reserved_key
from finetune_operator.api.labels import (
    DEFAULT_STARTUP_DEADLINE_ANNOTATION,
    PROFILE_ANNOTATION,
    PROFILE_HASH_ANNOTATION,
    STARTUP_DEADLINE_ANNOTATION,
)
from finetune_operator.api.objects import Body
from finetune_operator.policy.profiles import (
    CA_VARIABLES,
    ChosenProfile,
    ContainerFields,
    PodFields,
    Profile,
)
from finetune_operator.resources import multi_node, volumes
from finetune_trainer import contract
from finetune_trainer.contract import Model


class _OwnValues(NamedTuple):
    """The values of a FineTuneJob itself that win over its profile."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    node_selector: Mapping[str, str]
    priority_class_name: str | None
    resources: frozenset[str]
    """Names of the resources that the FineTuneJob requests or limits."""
    variables: frozenset[str]


def apply_profile_resources(finetunejob: FineTuneJob, profile: Profile, spec: FineTuneJobSpec) -> FineTuneJob:
    """Return the FineTuneJob, which has the defaults, with the quantities of its profile. `spec` is without them.

    Request and limit of a resource belong together, because a request must not exceed its limit: those of the profile
    replace both, unless the FineTuneJob sets one of them. They are merged before the Job is built, because the size of
    scratch depends on the limit of the disk.
    """
    own, added = _collect_own(profile, spec), profile.container.resources
    compute = finetunejob.spec.compute
    names = {*added.requests, *added.limits} - own.resources
    merged = {
        part: {key: value for key, value in current.items() if key not in names}
        | {key: value for key, value in values.items() if key in names}
        for part, current, values in (
            ("requests", compute.resources.requests, added.requests),
            ("limits", compute.resources.limits, added.limits),
        )
    }
    compute = compute.model_copy(update={"resources": compute.resources.model_copy(update=merged)})
    return finetunejob.model_copy(update={"spec": finetunejob.spec.model_copy(update={"compute": compute})})


def apply_profile(job: Body, chosen: ChosenProfile, spec: FineTuneJobSpec) -> Body:
    """Return the Job with the settings of its profile. `spec` is that of the FineTuneJob, without the defaults.

    The quantities of resources are already in the Job (`apply_profile_resources`).
    """
    profile = chosen.profile
    own = _collect_own(profile, spec)
    template = job["spec"]["template"]
    (container,) = template["spec"]["containers"]
    pod = {**_merge_pod(template["spec"], profile, own), "containers": [_merge_container(container, profile, own)]}
    template = {
        "metadata": {
            "labels": template["metadata"]["labels"] | profile.pod_labels | own.labels,
            "annotations": template["metadata"]["annotations"] | profile.pod_annotations | own.annotations,
        },
        "spec": _add_mounts(pod, profile),
    }
    return _annotate({**job, "spec": {**job["spec"], "template": template}}, chosen)


def apply_access_settings(job: Body, chosen: ChosenProfile, spec: FineTuneJobSpec) -> Body:
    """Return the Job of a task pod with what its profile says about labels and about the access to S3.

    The pod needs no devices, and starts on any node.
    """
    profile = chosen.profile
    access = profile.model_copy(
        update={
            "pod_spec": PodFields().model_copy(update=_select(profile.pod_spec, "dns_config", "host_aliases")),
            "container": ContainerFields().model_copy(update=_select(profile.container, "env")),
            "shared_memory": None,
            "startup_deadline_seconds": None,
        }
    )
    return apply_profile(job, chosen._replace(profile=access), spec)


def _select(part: Model, *fields: str) -> Body:
    return {name: value for name, value in part if name in fields}


def merge_maps(base: Body, changes: Body) -> Body:
    """Return `base` with `changes`: maps merge by key, lists append what is missing, other values are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        current = base.get(key)
        if isinstance(current, dict) and isinstance(value, dict):
            merged[key] = merge_maps(current, value)
        elif isinstance(current, list) and isinstance(value, list):
            merged[key] = [*current, *(item for item in value if item not in current)]
        else:
            merged[key] = value
    return merged


def _collect_own(profile: Profile, spec: FineTuneJobSpec) -> _OwnValues:
    return _collect_enforced_values(spec) if profile.enforce else _collect_own_values(spec)


def _collect_own_values(spec: FineTuneJobSpec) -> _OwnValues:
    compute = spec.compute
    return _OwnValues(
        labels={key: value for key, value in compute.pod_labels.items() if not is_reserved_key(key)},
        annotations={key: value for key, value in compute.pod_annotations.items() if not is_reserved_key(key)},
        node_selector=compute.node_selector,
        priority_class_name=compute.priority_class_name,
        resources=frozenset({*compute.resources.requests, *compute.resources.limits, *_list_gpu_resources(spec)}),
        variables=frozenset({contract.CA_BUNDLE_ENV} if spec.storage.ca_config_map_ref else ()),
    )


def _collect_enforced_values(spec: FineTuneJobSpec) -> _OwnValues:
    """Return what wins over an enforced profile: the number of GPUs, which is also the number of processes."""
    return _OwnValues({}, {}, {}, None, frozenset(_list_gpu_resources(spec)), frozenset())


def _list_gpu_resources(spec: FineTuneJobSpec) -> list[str]:
    return [spec.compute.gpu_resource] if spec.compute.gpus_per_node else []


def _dump(part: Model) -> Body:
    """Return the fields of a part of a profile that are set."""
    fields: Body = part.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return fields


def _merge_pod(pod: Body, profile: Profile, own: _OwnValues) -> Body:
    merged = merge_maps(pod, _dump(profile.pod_spec))
    if own.node_selector:
        merged["nodeSelector"] = merged["nodeSelector"] | own.node_selector
    if own.priority_class_name:
        merged["priorityClassName"] = own.priority_class_name
    return merged


def _merge_container(container: Body, profile: Profile, own: _OwnValues) -> Body:
    variables = [{"name": variable.name, "value": variable.value} for variable in profile.container.env]
    if profile.ca_config_map_ref:
        bundle = f"{volumes.PROFILE_CA_DIR}/{volumes.CA_FILE}"
        variables += [{"name": name, "value": bundle} for name in CA_VARIABLES if name not in own.variables]
    merged = {
        **container,
        "env": _merge_by_key("name", container["env"], variables),
    }
    if claims := profile.container.resources.claims:
        merged["resources"] = container["resources"] | {"claims": [_dump(claim) for claim in claims]}
    if profile.container.add_capabilities:
        capabilities = container["securityContext"]["capabilities"] | {"add": list(profile.container.add_capabilities)}
        merged["securityContext"] = container["securityContext"] | {"capabilities": capabilities}
    return merged


def _add_mounts(pod: Body, profile: Profile) -> Body:
    """Return the pod with the volumes of the profile: shared memory and the CA bundle."""
    mounts = [multi_node.build_shared_memory_mount(profile.shared_memory)] if profile.shared_memory else []
    mounts += [volumes.build_profile_ca_mount(profile.ca_config_map_ref)] if profile.ca_config_map_ref else []
    (container,) = pod["containers"]
    added_volumes = [{"name": mount["name"], **source} for mount, source in mounts]
    volume_mounts = _merge_by_key("mountPath", container["volumeMounts"], [mount for mount, _ in mounts])
    return {
        **pod,
        "containers": [{**container, "volumeMounts": volume_mounts}],
        "volumes": _merge_by_key("name", pod.get("volumes", []), added_volumes),
    }


def _merge_by_key(key: str, items: Iterable[Body], changes: Iterable[Body]) -> list[Body]:
    """Return the items of a list whose items have a unique key. Changes replace the items with their keys."""
    return list({item[key]: item for item in (*items, *changes)}.values())


def _annotate(job: Body, chosen: ChosenProfile) -> Body:
    """Record the profile on the Job, and its startup deadline, which the operator reads as long as the Job exists."""
    annotations = {PROFILE_ANNOTATION: chosen.name, PROFILE_HASH_ANNOTATION: chosen.profile.compute_hash()}
    if seconds := chosen.profile.startup_deadline_seconds:
        key = STARTUP_DEADLINE_ANNOTATION if chosen.profile.enforce else DEFAULT_STARTUP_DEADLINE_ANNOTATION
        annotations[key] = str(seconds)
    metadata = job["metadata"]
    return {**job, "metadata": {**metadata, "annotations": metadata.get("annotations", {}) | annotations}}
