"""What of a FineTuneJob is out of bounds. Pure.

The bounds are those of `bounds.Bounds`. What the operator's own settings name is always allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from finetune_operator.api import ConfigMapKeyRef, FineTuneJob, FineTuneJobSpec
from finetune_operator.api.compute import ComputeSpec
from finetune_operator.api.labels import PRIORITY_LABEL
from finetune_operator.policy.defaults import Defaults
from finetune_operator.policy.limits import Bounds, matches_pattern
from finetune_operator.settings import Settings
from finetune_trainer.contract import Model, ModelSource, SecretRef, Tracking

AWS_ENDPOINT = "aws"
"""What `allowedStorageEndpoints` calls AWS, the store of those who name none."""
WANDB_TRACKER = "wandb"
"""What `allowedTrackers` calls wandb.ai."""

_ALL_KEYS = "(every key)"
"""What a toleration without a key asks for; of all patterns `**` alone matches it."""

ReferenceT = TypeVar("ReferenceT", bound=Model)


class _PolicyCheck(NamedTuple):
    """A field, what it asks for, and the patterns of which one has to match; none is no bound."""

    field: str
    value: str
    allowed_patterns: Sequence[str]


def find_violations(finetunejob: FineTuneJob, settings: Settings) -> list[str]:
    """Field, value, and what is allowed, of all that is out of bounds."""
    bounds, defaults = settings.bounds, settings.defaults
    checks = [
        *_collect_name_checks(finetunejob, settings),
        *_collect_reference_checks(finetunejob, bounds, defaults),
        *_collect_key_checks(finetunejob.spec.compute, bounds),
    ]
    return [
        *_check_namespace(finetunejob.metadata.namespace, bounds),
        *(violation for check in checks if (violation := _find_violation(check))),
        *_check_tracker_credentials(finetunejob.spec, bounds),
        *_check_model_revision(finetunejob.spec.model, bounds),
        *_check_node_selector(finetunejob.spec.compute.node_selector or defaults.node_selector, bounds),
        *_check_sizes(finetunejob.spec.compute, bounds),
    ]


def find_references(model: Model, reference_type: type[ReferenceT], path: str) -> Iterator[tuple[str, ReferenceT]]:
    """Every reference of that kind at or below a part of the API, each with its path."""
    if isinstance(model, reference_type):
        yield path, model
    for name, value in model:
        alias = type(model).model_fields[name].alias or name
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, Model):
                item_path = f"{path}.{alias}" + (f"[{index}]" if isinstance(value, list) else "")
                yield from find_references(item, reference_type, item_path)


def _collect_name_checks(finetunejob: FineTuneJob, settings: Settings) -> Iterator[_PolicyCheck]:
    """What is named once, or not at all."""
    spec, bounds, defaults = finetunejob.spec, settings.bounds, settings.defaults
    service_account = spec.compute.service_account_name or defaults.service_account_name or "default"
    endpoint = spec.storage.endpoint or defaults.storage.endpoint or AWS_ENDPOINT
    priority_classes = bounds.allowed_priority_classes
    requests = (
        ("spec.model.uri", spec.model.uri, bounds.allowed_models, None),
        ("spec.model.adapterURI", spec.model.adapter_uri, bounds.allowed_models, None),
        (
            "spec.storage.endpoint",
            _normalize_url(endpoint),
            bounds.allowed_storage_endpoints,
            defaults.storage.endpoint,
        ),
        ("spec.tracking.uri", _get_tracker_url(spec.tracking), bounds.allowed_trackers, None),
        ("spec.compute.image", spec.compute.image, bounds.allowed_images, settings.trainer_image),
        (
            "spec.compute.serviceAccountName",
            service_account,
            bounds.allowed_service_accounts,
            defaults.service_account_name,
        ),
        (
            "spec.compute.priorityClassName",
            spec.compute.priority_class_name,
            priority_classes,
            defaults.priority_class_name,
        ),
        (f"metadata.labels[{PRIORITY_LABEL}]", finetunejob.metadata.labels.get(PRIORITY_LABEL), priority_classes, None),
    )
    for field, value, allowed, operator_value in requests:
        if value:
            yield _PolicyCheck(
                field,
                value,
                _extend_allowed(
                    map(_normalize_url, allowed), [_normalize_url(operator_value)] if operator_value else []
                ),
            )


def _collect_reference_checks(job: FineTuneJob, bounds: Bounds, defaults: Defaults) -> Iterator[_PolicyCheck]:
    """Every Secret and ConfigMap, whatever field names it. Nothing is looked for where there is no bound."""
    reference_types: list[tuple[type[SecretRef | ConfigMapKeyRef], Sequence[str]]] = [
        (SecretRef, bounds.allowed_secrets),
        (ConfigMapKeyRef, bounds.allowed_config_maps),
    ]
    for reference_type, allowed in reference_types:
        if allowed:
            operator_names = [
                default_reference.name for _, default_reference in find_references(defaults, reference_type, "defaults")
            ]
            for path, reference in find_references(job.spec, reference_type, "spec"):
                yield _PolicyCheck(f"{path}.name", reference.name, _extend_allowed(allowed, operator_names))


def _collect_key_checks(compute: ComputeSpec, bounds: Bounds) -> Iterator[_PolicyCheck]:
    """Keys of maps and lists."""
    requested = {
        "podLabels": (compute.pod_labels, bounds.allowed_pod_labels),
        "podAnnotations": (compute.pod_annotations, bounds.allowed_pod_annotations),
        "tolerations": (
            [toleration.key or _ALL_KEYS for toleration in compute.tolerations],
            bounds.allowed_tolerations,
        ),
        "gpuResource": ([compute.gpu_resource] if compute.gpus_per_node else [], _get_allowed_gpu_resources(bounds)),
        "resources": (_list_requested_devices(compute), bounds.allowed_resources or _deny_other_devices(bounds)),
    }
    for field, (requested_keys, allowed) in requested.items():
        for key in requested_keys:
            yield _PolicyCheck(f"spec.compute.{field}", key, allowed)


def _list_requested_devices(compute: ComputeSpec) -> list[str]:
    """Devices asked for beside `gpusPerNode`, which replaces what is said of its own resource."""
    names = sorted({*compute.resources.requests, *compute.resources.limits})
    gpu_resources = [compute.gpu_resource] if compute.gpus_per_node else []
    return [name for name in names if "/" in name and name not in gpu_resources]


def _get_allowed_gpu_resources(bounds: Bounds) -> list[str]:
    """What `gpusPerNode` may count: without a bound of its own, no device that `resources` may not name, either."""
    return bounds.allowed_gpu_resources or _extend_allowed(bounds.allowed_resources, [ComputeSpec().gpu_resource])


def _deny_other_devices(bounds: Bounds) -> list[str]:
    """Nor is there a bound on GPUs of which `resources` would be the side door."""
    has_gpu_bound = bounds.max_gpus is not None or bounds.allowed_gpu_resources
    return ["no devices; set compute.gpusPerNode for GPUs"] if has_gpu_bound else []


def _extend_allowed(allowed: Iterable[str], operator_values: Sequence[str]) -> list[str]:
    """The bound, if there is one, with what the operator's settings name."""
    patterns = list(allowed)
    return [*patterns, *operator_values] if patterns else []


def _get_tracker_url(tracking: Tracking | None) -> str | None:
    """Its server: scheme and host of an address of its own, which may have a path."""
    if tracking is None or tracking.tool == "tensorboard":
        return None
    return "/".join(_normalize_url(tracking.uri).split("/")[:3]) if tracking.uri else WANDB_TRACKER


def _check_tracker_credentials(spec: FineTuneJobSpec, bounds: Bounds) -> Iterator[str]:
    """Trackers get their credentials as they are, so an address of one's own would read any Secret that is allowed."""
    tracking = spec.tracking
    if not bounds.allowed_secrets or bounds.allowed_trackers or tracking is None:
        return
    if tracking.uri and tracking.credentials_secret_ref:
        yield (
            f"spec.tracking.uri: {_get_tracker_url(tracking)} is not allowed with spec.tracking.credentialsSecretRef; "
            "set bounds.allowedTrackers."
        )


def _check_model_revision(model: ModelSource, bounds: Bounds) -> Iterator[str]:
    """Anybody may open one in anybody's repository: https://huggingface.co/docs/hub/repositories-pull-requests-discussions"""
    if bounds.allowed_models and model.revision and model.revision.startswith("refs/"):
        yield f"spec.model.revision: {model.revision} is not allowed; allowed: a branch, a tag or a commit."


def _normalize_url(text: str) -> str:
    """As URLs are compared; other names have neither a scheme nor a slash at the end."""
    return text.lower().rstrip("/") if text.startswith(("http:", "https:")) else text


def _find_violation(check: _PolicyCheck) -> str | None:
    if not check.allowed_patterns or any(matches_pattern(check.value, pattern) for pattern in check.allowed_patterns):
        return None
    return f"{check.field}: {check.value} is not allowed; allowed: {', '.join(check.allowed_patterns)}."


def _check_namespace(namespace: str, bounds: Bounds) -> Iterator[str]:
    if any(matches_pattern(namespace, pattern) for pattern in bounds.denied_namespaces):
        yield f"metadata.namespace: {namespace} is not allowed; denied: {', '.join(bounds.denied_namespaces)}."
    if violation := _find_violation(_PolicyCheck("metadata.namespace", namespace, bounds.allowed_namespaces)):
        yield violation


def _check_node_selector(selector: Mapping[str, str], bounds: Bounds) -> Iterator[str]:
    for key, value in bounds.required_node_selector.items():
        if selector.get(key) != value:
            yield f"spec.compute.nodeSelector: must contain {key}={value}."


def _check_sizes(compute: ComputeSpec, bounds: Bounds) -> Iterator[str]:
    gpus = compute.nodes * compute.gpus_per_node
    if bounds.max_gpus is not None and gpus > bounds.max_gpus:
        yield (
            f"spec.compute: nodes {compute.nodes} x gpusPerNode {compute.gpus_per_node} is {gpus} GPUs; "
            f"allowed: {bounds.max_gpus}."
        )
    if bounds.max_nodes is not None and compute.nodes > bounds.max_nodes:
        yield f"spec.compute.nodes: {compute.nodes} is not allowed; allowed: {bounds.max_nodes}."
