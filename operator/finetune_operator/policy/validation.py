"""Validation of a FineTuneJob against the bounds of the installation (`limits.Bounds`).

Values that the operator's own settings contain, such as its defaults, are always allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import unquote

from finetune_operator.api import ConfigMapKeyRef, FineTuneJob, FineTuneJobSpec
from finetune_operator.api.compute import ComputeSpec
from finetune_operator.api.labels import PRIORITY_LABEL
from finetune_operator.api.spec import EndpointSpec, TrackingSpec
from finetune_operator.policy.defaults import Defaults
from finetune_operator.policy.limits import Bounds, matches_pattern
from finetune_operator.policy.profiles import Profile, Profiles
from finetune_operator.settings import Settings
from finetune_trainer.contract import Model, ModelSource, SecretRef, Tracking

AWS_ENDPOINT = "aws"
"""The value of an unset `storage.endpoint` in `allowedStorageEndpoints`."""
WANDB_TRACKER = "wandb"
"""The value of an unset `tracking.uri` in `allowedTrackers`."""
_HUB_DATASET = re.compile(r"(hf://datasets/[^/@]+/[^/@]+)(?:@(.*)|/.*)?", re.DOTALL)
"""Repository and revision of an `hf://` dataset. The revision is followed by the path, if there is one."""
_NO_KEY = "(no key)"
"""The value of a toleration without a key, which tolerates all taints. Only the pattern `**` matches it."""
_NO_DEVICES = "no devices; set spec.compute.gpusPerNode for GPUs"
"""Text in place of patterns if no devices are allowed. It matches no name of a resource."""
_NO_CACHE_CLAIMS = "no claims; an administrator can allow them in bounds.allowedModelCacheClaims"
"""Text in place of patterns if no model cache is allowed. It matches no name of a claim."""

_NO_PROFILES, _NO_PROFILE = Profiles(), Profile()

ReferenceT = TypeVar("ReferenceT", bound=Model)


class _PolicyCheck(NamedTuple):
    """A field, its value, and patterns of which one must match.

    Nothing is checked if the field is unset or if there are no patterns.
    """

    field: str
    value: str | None
    allowed_patterns: Sequence[str]


def find_violations(finetunejob: FineTuneJob, settings: Settings, profiles: Profiles = _NO_PROFILES) -> list[str]:
    """Return a sentence for each violation, with the path of the field, its value, and what is allowed.

    Bounds apply to what the FineTuneJob contains, not to what its compute profile adds.
    """
    spec, bounds, defaults = finetunejob.spec, settings.bounds, settings.defaults
    checks = [
        *_collect_name_checks(finetunejob, settings),
        *_collect_location_checks(spec, bounds),
        *_collect_endpoint_checks(spec.evaluation.endpoints, bounds),
        *_collect_reference_checks(spec, bounds, defaults),
        *_collect_key_checks(spec.compute, bounds),
        _build_profile_check(spec.compute.profile, finetunejob.metadata.namespace, profiles, bounds),
    ]
    profile_name = spec.compute.profile or profiles.get_default_name(finetunejob.metadata.namespace)
    profile = profiles.profiles.get(profile_name) if profile_name else _NO_PROFILE
    return [
        *_check_namespace(finetunejob.metadata.namespace, bounds),
        *(violation for check in checks if (violation := _find_violation(check))),
        *_check_tracker_credentials(spec.tracking, bounds),
        *_check_endpoint_credentials(spec.evaluation.endpoints, bounds),
        *_check_model_revision(spec.model, bounds),
        *_check_dataset_revisions(spec, bounds),
        # A profile that does not exist yet may set the labels. Without it, no Job is created.
        *(_check_node_selector(spec.compute.node_selector, settings, profile) if profile else ()),
        *_check_sizes(spec.compute, bounds),
    ]


def describe_missing_profile(name: str, namespace: str, profiles: Profiles, bounds: Bounds) -> str:
    """Return a message about a profile that does not exist, with the profiles that may be named in the namespace."""
    checks = (_build_profile_check(known, namespace, profiles, bounds) for known in sorted(profiles.profiles))
    allowed_names = [str(check.value) for check in checks if _find_violation(check) is None]
    return (
        f"spec.compute.profile: there is no compute profile {name}; profiles: {', '.join(allowed_names) or 'none'}. "
        "The Job is created when an administrator has added it. To use another one, set spec.suspend to true, change "
        "the profile, and set spec.suspend to false."
    )


def find_references(model: Model, reference_type: type[ReferenceT], path: str) -> Iterator[tuple[str, ReferenceT]]:
    """Yield the path and the value of each reference of this type in a part of the API."""
    if isinstance(model, reference_type):
        yield path, model
    for name, value in model:
        alias = type(model).model_fields[name].alias or name
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, Model):
                item_path = f"{path}.{alias}" + (f"[{index}]" if isinstance(value, list) else "")
                yield from find_references(item, reference_type, item_path)


def _collect_name_checks(finetunejob: FineTuneJob, settings: Settings) -> list[_PolicyCheck]:
    """Return the checks of fields with a single value. Values of the operator's settings are allowed."""
    spec, bounds, defaults = finetunejob.spec, settings.bounds, settings.defaults
    endpoint = spec.storage.endpoint or defaults.storage.endpoint or AWS_ENDPOINT
    service_account = spec.compute.service_account_name or defaults.service_account_name or "default"
    priority_label = finetunejob.metadata.labels.get(PRIORITY_LABEL)

    def check(field: str, value: str | None, allowed: Sequence[str], setting: str | None = None) -> _PolicyCheck:
        return _PolicyCheck(field, value or None, _extend_allowed(allowed, [setting] if setting else []))

    return [
        check(
            "spec.storage.endpoint",
            _normalize_url(endpoint),
            [*map(_normalize_url, bounds.allowed_storage_endpoints)],
            _normalize_url(defaults.storage.endpoint or ""),
        ),
        check("spec.tracking.uri", _get_tracker_url(spec.tracking), [*map(_normalize_url, bounds.allowed_trackers)]),
        check("spec.compute.image", spec.compute.image, bounds.allowed_images, settings.trainer_image),
        check(
            "spec.compute.serviceAccountName",
            service_account,
            bounds.allowed_service_accounts,
            defaults.service_account_name,
        ),
        check(
            "spec.compute.priorityClassName",
            spec.compute.priority_class_name,
            bounds.allowed_priority_classes,
            defaults.priority_class_name,
        ),
        check(
            "spec.compute.modelCacheClaimName",
            spec.compute.model_cache_claim_name,
            bounds.allowed_model_cache_claims or _deny_other_claims(bounds),
        ),
        check(f"metadata.labels[{PRIORITY_LABEL}]", priority_label, bounds.allowed_priority_classes),
    ]


def _build_profile_check(name: str | None, namespace: str, profiles: Profiles, bounds: Bounds) -> _PolicyCheck:
    default_name = profiles.get_default_name(namespace)
    allowed = _extend_allowed(bounds.allowed_profiles, [default_name] if default_name else [])
    return _PolicyCheck("spec.compute.profile", name, allowed)


def _collect_location_checks(spec: FineTuneJobSpec, bounds: Bounds) -> Iterator[_PolicyCheck]:
    """Yield the checks of all locations that models, adapters and data are read from."""
    yield _PolicyCheck("spec.model.uri", spec.model.uri, bounds.allowed_models)
    yield _PolicyCheck("spec.model.adapterURI", spec.model.adapter_uri, bounds.allowed_models)
    for index, baseline in enumerate(spec.evaluation.baselines):
        field = f"spec.evaluation.baselines[{index}].adapterURI"
        yield _PolicyCheck(field, baseline.adapter_uri, bounds.allowed_models)
    for field, uri in _list_data_uris(spec):
        yield _PolicyCheck(field, _strip_hub_path(uri), bounds.allowed_datasets)


def _list_data_uris(spec: FineTuneJobSpec) -> list[tuple[str, str]]:
    """Return the path and the value of each field with the URI of data."""
    validation, bias = spec.dataset.validation, spec.evaluation.bias
    uris = [(f"spec.dataset.sources[{index}].uri", source.uri) for index, source in enumerate(spec.dataset.sources)]
    for index, source in enumerate((validation and validation.sources) or []):
        uris.append((f"spec.dataset.validation.sources[{index}].uri", source.uri))
    for index, source in enumerate(spec.evaluation.test.sources if spec.evaluation.test else []):
        uris.append((f"spec.evaluation.test.sources[{index}].uri", source.uri))
    return [*uris, *([("spec.evaluation.bias.pairsURI", bias.pairs_uri)] if bias and bias.pairs_uri else [])]


def _strip_hub_path(uri: str) -> str:
    """Return the repository of an `hf://` dataset, without revision and path. Other URIs are returned unchanged."""
    match = _HUB_DATASET.fullmatch(uri)
    return match[1] if match else uri


def _collect_reference_checks(spec: FineTuneJobSpec, bounds: Bounds, defaults: Defaults) -> Iterator[_PolicyCheck]:
    """Yield the checks of all references to Secrets and ConfigMaps, wherever they are in the spec."""
    reference_types: list[tuple[type[SecretRef | ConfigMapKeyRef], Sequence[str]]] = [
        (SecretRef, bounds.allowed_secrets),
        (ConfigMapKeyRef, bounds.allowed_config_maps),
    ]
    for reference_type, allowed in reference_types:
        if not allowed:
            continue
        default_names = [reference.name for _, reference in find_references(defaults, reference_type, "defaults")]
        for path, reference in find_references(spec, reference_type, "spec"):
            yield _PolicyCheck(f"{path}.name", reference.name, _extend_allowed(allowed, default_names))


def _collect_key_checks(compute: ComputeSpec, bounds: Bounds) -> Iterator[_PolicyCheck]:
    """Yield the checks of the keys in maps and lists."""
    requested = {
        "podLabels": (compute.pod_labels, bounds.allowed_pod_labels),
        "podAnnotations": (compute.pod_annotations, bounds.allowed_pod_annotations),
        "tolerations": (
            [toleration.key or _NO_KEY for toleration in compute.tolerations],
            bounds.allowed_tolerations,
        ),
        "gpuResource": ([compute.gpu_resource] if compute.gpus_per_node else [], _get_allowed_gpu_resources(bounds)),
        "resources": (_list_requested_devices(compute), bounds.allowed_resources or _deny_other_devices(bounds)),
    }
    for field, (requested_keys, allowed) in requested.items():
        for key in requested_keys:
            yield _PolicyCheck(f"spec.compute.{field}", key, allowed)


def _list_requested_devices(compute: ComputeSpec) -> list[str]:
    """Return the devices in `resources`, except the one that `gpusPerNode` overwrites."""
    names = sorted({*compute.resources.requests, *compute.resources.limits})
    gpu_resources = [compute.gpu_resource] if compute.gpus_per_node else []
    return [name for name in names if "/" in name and name not in gpu_resources]


def _get_allowed_gpu_resources(bounds: Bounds) -> list[str]:
    """Return the resources that `gpusPerNode` may count. Without a bound of its own, that of `resources` applies."""
    return bounds.allowed_gpu_resources or _extend_allowed(bounds.allowed_resources, [ComputeSpec().gpu_resource])


def _deny_other_devices(bounds: Bounds) -> list[str]:
    """Deny all devices in `resources` if GPUs are limited, because devices could be GPUs of another resource name."""
    has_gpu_bound = bounds.max_gpus is not None or bounds.allowed_gpu_resources
    return [_NO_DEVICES] if has_gpu_bound else []


def _deny_other_claims(bounds: Bounds) -> list[str]:
    """Deny to write to any claim if the claims that may be read are limited, because the cache writes to its claim."""
    return [_NO_CACHE_CLAIMS] if bounds.allowed_models or bounds.allowed_datasets else []


def _extend_allowed(allowed: Iterable[str], operator_values: Sequence[str]) -> list[str]:
    """Return the allowed patterns, if there is a bound, with the values of the operator's settings."""
    patterns = list(allowed)
    return [*patterns, *operator_values] if patterns else []


def _get_tracker_url(tracking: Tracking | None) -> str | None:
    """Return the URL of the tracking server without its path, or None if there is no server."""
    if tracking is None or tracking.tool == "tensorboard":
        return None
    return _strip_path(tracking.uri) if tracking.uri else WANDB_TRACKER


def _strip_path(url: str) -> str:
    """Return scheme, host and port of a URL."""
    return "/".join(_normalize_url(url).split("/")[:3])


def _collect_endpoint_checks(endpoints: Sequence[EndpointSpec], bounds: Bounds) -> Iterator[_PolicyCheck]:
    """Yield the checks of the servers that prompts and answers are sent to."""
    allowed = [*map(_normalize_url, bounds.allowed_grader_endpoints)]
    for index, endpoint in enumerate(endpoints):
        yield _PolicyCheck(f"spec.evaluation.endpoints[{index}].uri", _strip_path(endpoint.uri), allowed)


def _check_endpoint_credentials(endpoints: Sequence[EndpointSpec], bounds: Bounds) -> Iterator[str]:
    """Reject an endpoint with a Secret if Secrets are limited and endpoints are not, as for tracking servers."""
    if not bounds.allowed_secrets or bounds.allowed_grader_endpoints:
        return
    for index, endpoint in enumerate(endpoints):
        if endpoint.credentials_secret_ref:
            yield (
                f"spec.evaluation.endpoints[{index}].uri: {_strip_path(endpoint.uri)} is not allowed with "
                "credentialsSecretRef; an administrator can allow it in bounds.allowedGraderEndpoints."
            )


def _check_tracker_credentials(tracking: TrackingSpec | None, bounds: Bounds) -> Iterator[str]:
    """Reject a tracking server with a Secret if Secrets are limited and servers are not.

    The server receives the credentials in plain text, so a user could read every allowed Secret with a server of
    their own.
    """
    if not bounds.allowed_secrets or bounds.allowed_trackers or tracking is None:
        return
    if tracking.uri and tracking.credentials_secret_ref:
        yield (
            f"spec.tracking.uri: {_get_tracker_url(tracking)} is not allowed with spec.tracking.credentialsSecretRef; "
            "an administrator can allow it in bounds.allowedTrackers."
        )


def _check_model_revision(model: ModelSource, bounds: Bounds) -> Iterator[str]:
    """Reject pull requests, which everyone can open in every repository.

    https://huggingface.co/docs/hub/repositories-pull-requests-discussions
    """
    if bounds.allowed_models and model.revision and model.revision.startswith("refs/"):
        yield f"spec.model.revision: {model.revision} is not allowed; allowed: a branch, a tag or a commit."


def _check_dataset_revisions(spec: FineTuneJobSpec, bounds: Bounds) -> Iterator[str]:
    """Reject pull requests of datasets, as those of models. `refs/convert/` is written by the hub itself."""
    for field, uri in _list_data_uris(spec) if bounds.allowed_datasets else ():
        match = _HUB_DATASET.fullmatch(uri)
        revision = unquote(match[2] or "") if match else ""
        if revision.startswith("refs/") and not revision.startswith("refs/convert/"):
            yield f"{field}: {uri} is not allowed; allowed: a branch, a tag or a commit."


def _normalize_url(text: str) -> str:
    """Return a URL in the form in which URLs are compared. Other values are returned unchanged."""
    return text.lower().rstrip("/") if text.startswith(("http:", "https:")) else text


def _find_violation(check: _PolicyCheck) -> str | None:
    if check.value is None or not check.allowed_patterns:
        return None
    if any(matches_pattern(check.value, pattern) for pattern in check.allowed_patterns):
        return None
    return f"{check.field}: {check.value} is not allowed; allowed: {', '.join(check.allowed_patterns)}."


def _check_namespace(namespace: str, bounds: Bounds) -> Iterator[str]:
    if any(matches_pattern(namespace, pattern) for pattern in bounds.denied_namespaces):
        yield f"metadata.namespace: {namespace} is not allowed; denied: {', '.join(bounds.denied_namespaces)}."
    if violation := _find_violation(_PolicyCheck("metadata.namespace", namespace, bounds.allowed_namespaces)):
        yield violation


def _check_node_selector(own_selector: Mapping[str, str], settings: Settings, profile: Profile) -> Iterator[str]:
    """Check the labels that must be in the node selector. A label that the profile sets is that of an administrator."""
    selector = own_selector or settings.defaults.node_selector
    profile_keys = set(profile.pod_spec.node_selector) - set(() if profile.enforce else own_selector)
    for key, value in settings.bounds.required_node_selector.items():
        if key not in profile_keys and selector.get(key) != value:
            yield f"spec.compute.nodeSelector: must contain {key}={value}."


def _check_sizes(compute: ComputeSpec, bounds: Bounds) -> Iterator[str]:
    gpus = compute.nodes * compute.gpus_per_node
    if bounds.max_gpus is not None and gpus > bounds.max_gpus:
        total = f"a total of {gpus} GPUs (nodes {compute.nodes} x gpusPerNode {compute.gpus_per_node})"
        yield f"spec.compute: {total} is not allowed; allowed: at most {bounds.max_gpus}."
    if bounds.max_nodes is not None and compute.nodes > bounds.max_nodes:
        yield f"spec.compute.nodes: {compute.nodes} is not allowed; allowed: at most {bounds.max_nodes}."
