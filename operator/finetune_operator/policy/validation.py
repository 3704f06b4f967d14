"""What of a FineTuneJob is out of bounds. Pure.

The bounds are those of `bounds.Bounds`. What the operator's own settings name is always allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from finetune_operator.api import ConfigMapKeyRef, FineTuneJob, FineTuneJobSpec
from finetune_operator.api.compute import Compute
from finetune_operator.policy.defaults import Defaults
from finetune_operator.policy.limits import Bounds, matches
from finetune_operator.resources.job import PRIORITY_LABEL
from finetune_operator.settings import Settings
from finetune_trainer.contract import Model, ModelSource, SecretRef, Tracking

AWS = "aws"
"""What `allowedStorageEndpoints` calls AWS, the store of those who name none."""
WANDB = "wandb"
"""What `allowedTrackers` calls wandb.ai."""

_EVERY_KEY = "(every key)"
"""What a toleration without a key asks for; of all patterns `**` alone matches it."""

Reference = TypeVar("Reference", bound=Model)


class _Asked(NamedTuple):
    """A field, what it asks for, and the patterns of which one has to match; none is no bound."""

    field: str
    value: str
    allowed: Sequence[str]


def refusals(job: FineTuneJob, settings: Settings) -> list[str]:
    """Field, value, and what is allowed, of all that is out of bounds."""
    bounds, defaults = settings.bounds, settings.defaults
    asked = [
        *_names(job, settings),
        *_secrets(job, bounds, defaults),
        *_keys(job.spec.compute, bounds),
    ]
    return [
        *_namespace(job.metadata.namespace, bounds),
        *(refusal for each in asked if (refusal := _refusal(each))),
        *_own_tracker(job.spec, bounds),
        *_pull_request(job.spec.model, bounds),
        *_node_selector(job.spec.compute.node_selector or defaults.node_selector, bounds),
        *_sizes(job.spec.compute, bounds),
    ]


def references(part: Model, kind: type[Reference], path: str) -> Iterator[tuple[str, Reference]]:
    """Every reference of that kind at or below a part of the API, each with its path."""
    if isinstance(part, kind):
        yield path, part
    for name, value in part:
        alias = type(part).model_fields[name].alias or name
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, Model):
                place = f"{path}.{alias}" + (f"[{index}]" if isinstance(value, list) else "")
                yield from references(each, kind, place)


def _names(job: FineTuneJob, settings: Settings) -> Iterator[_Asked]:
    """What is named once, or not at all."""
    spec, bounds, defaults = job.spec, settings.bounds, settings.defaults
    account = spec.compute.service_account_name or defaults.service_account_name or "default"
    endpoint = spec.storage.endpoint or defaults.storage.endpoint or AWS
    classes = bounds.allowed_priority_classes
    rows = (
        ("spec.model.uri", spec.model.uri, bounds.allowed_models, None),
        ("spec.model.adapterURI", spec.model.adapter_uri, bounds.allowed_models, None),
        ("spec.storage.endpoint", _url(endpoint), bounds.allowed_storage_endpoints, defaults.storage.endpoint),
        ("spec.tracking.uri", _tracker(spec.tracking), bounds.allowed_trackers, None),
        ("spec.compute.image", spec.compute.image, bounds.allowed_images, settings.trainer_image),
        ("spec.compute.serviceAccountName", account, bounds.allowed_service_accounts, defaults.service_account_name),
        ("spec.compute.priorityClassName", spec.compute.priority_class_name, classes, defaults.priority_class_name),
        (f"metadata.labels[{PRIORITY_LABEL}]", job.metadata.labels.get(PRIORITY_LABEL), classes, None),
    )
    for field, value, allowed, own in rows:
        if value:
            yield _Asked(field, value, _with(map(_url, allowed), [_url(own)] if own else []))


def _secrets(job: FineTuneJob, bounds: Bounds, defaults: Defaults) -> Iterator[_Asked]:
    """Every Secret and ConfigMap, whatever field names it. Nothing is looked for where there is no bound."""
    kinds: list[tuple[type[SecretRef | ConfigMapKeyRef], Sequence[str]]] = [
        (SecretRef, bounds.allowed_secrets),
        (ConfigMapKeyRef, bounds.allowed_config_maps),
    ]
    for kind, allowed in kinds:
        if allowed:
            own = [each.name for _, each in references(defaults, kind, "defaults")]
            for path, found in references(job.spec, kind, "spec"):
                yield _Asked(f"{path}.name", found.name, _with(allowed, own))


def _keys(compute: Compute, bounds: Bounds) -> Iterator[_Asked]:
    """Keys of maps and lists."""
    keys = {
        "podLabels": (compute.pod_labels, bounds.allowed_pod_labels),
        "podAnnotations": (compute.pod_annotations, bounds.allowed_pod_annotations),
        "tolerations": ([each.key or _EVERY_KEY for each in compute.tolerations], bounds.allowed_tolerations),
        "gpuResource": ([compute.gpu_resource] if compute.gpus_per_node else [], _counted_devices(bounds)),
        "resources": (_devices(compute), bounds.allowed_resources or _none_beside_gpus(bounds)),
    }
    for field, (asked, allowed) in keys.items():
        for key in asked:
            yield _Asked(f"spec.compute.{field}", key, allowed)


def _devices(compute: Compute) -> list[str]:
    """Devices asked for beside `gpusPerNode`, which replaces what is said of its own resource."""
    names = sorted({*compute.resources.requests, *compute.resources.limits})
    counted = [compute.gpu_resource] if compute.gpus_per_node else []
    return [name for name in names if "/" in name and name not in counted]


def _counted_devices(bounds: Bounds) -> list[str]:
    """What `gpusPerNode` may count: without a bound of its own, no device that `resources` may not name, either."""
    return bounds.allowed_gpu_resources or _with(bounds.allowed_resources, [Compute().gpu_resource])


def _none_beside_gpus(bounds: Bounds) -> list[str]:
    """Nor is there a bound on GPUs of which `resources` would be the side door."""
    bounded = bounds.max_gpus is not None or bounds.allowed_gpu_resources
    return ["no devices; set compute.gpusPerNode for GPUs"] if bounded else []


def _with(allowed: Iterable[str], own: Sequence[str]) -> list[str]:
    """The bound, if there is one, with what the operator's settings name."""
    listed = list(allowed)
    return [*listed, *own] if listed else []


def _tracker(tracking: Tracking | None) -> str | None:
    """Its server: scheme and host of an address of its own, which may have a path."""
    if tracking is None or tracking.tool == "tensorboard":
        return None
    return "/".join(_url(tracking.uri).split("/")[:3]) if tracking.uri else WANDB


def _own_tracker(spec: FineTuneJobSpec, bounds: Bounds) -> Iterator[str]:
    """Trackers get their credentials as they are, so an address of one's own would read any Secret that is allowed."""
    tracking = spec.tracking
    if not bounds.allowed_secrets or bounds.allowed_trackers or tracking is None:
        return
    if tracking.uri and tracking.credentials_secret_ref:
        yield (
            f"spec.tracking.uri: {_tracker(tracking)} is not allowed with spec.tracking.credentialsSecretRef; "
            "set bounds.allowedTrackers."
        )


def _pull_request(model: ModelSource, bounds: Bounds) -> Iterator[str]:
    """Anybody may open one in anybody's repository: https://huggingface.co/docs/hub/repositories-pull-requests-discussions"""
    if bounds.allowed_models and model.revision and model.revision.startswith("refs/"):
        yield f"spec.model.revision: {model.revision} is not allowed; allowed: a branch, a tag or a commit."


def _url(text: str) -> str:
    """As URLs are compared; other names have neither a scheme nor a slash at the end."""
    return text.lower().rstrip("/") if text.startswith(("http:", "https:")) else text


def _refusal(asked: _Asked) -> str | None:
    if not asked.allowed or any(matches(asked.value, pattern) for pattern in asked.allowed):
        return None
    return f"{asked.field}: {asked.value} is not allowed; allowed: {', '.join(asked.allowed)}."


def _namespace(namespace: str, bounds: Bounds) -> Iterator[str]:
    if any(matches(namespace, pattern) for pattern in bounds.denied_namespaces):
        yield f"metadata.namespace: {namespace} is not allowed; denied: {', '.join(bounds.denied_namespaces)}."
    if refusal := _refusal(_Asked("metadata.namespace", namespace, bounds.allowed_namespaces)):
        yield refusal


def _node_selector(selector: Mapping[str, str], bounds: Bounds) -> Iterator[str]:
    for key, value in bounds.required_node_selector.items():
        if selector.get(key) != value:
            yield f"spec.compute.nodeSelector: must contain {key}={value}."


def _sizes(compute: Compute, bounds: Bounds) -> Iterator[str]:
    gpus = compute.nodes * compute.gpus_per_node
    if bounds.max_gpus is not None and gpus > bounds.max_gpus:
        yield (
            f"spec.compute: nodes {compute.nodes} x gpusPerNode {compute.gpus_per_node} is {gpus} GPUs; "
            f"allowed: {bounds.max_gpus}."
        )
    if bounds.max_nodes is not None and compute.nodes > bounds.max_nodes:
        yield f"spec.compute.nodes: {compute.nodes} is not allowed; allowed: {bounds.max_nodes}."
