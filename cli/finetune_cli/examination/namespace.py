"""Checks of the user's namespace and rights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_cli.examination.findings import Check, Finding, Level, Subject

_GROUP = "finetune.dev"
_RUN_RESOURCES = ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
_BLOCKING = ("pods", "count/pods", "count/jobs.batch", f"count/finetunejobs.{_GROUP}")
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_MAX_RUNS = 50


@dataclass(frozen=True)
class _Right:
    """What a user needs for something, and the role that has it."""

    purpose: str
    requests: tuple[tuple[str, str, str], ...]
    """Verb, group and resource, with its subresource after a slash."""
    role: str
    denied: Level = Level.WARNING


_OPERATOR_ROLE = "ClusterRole finetune-operator"
_RIGHTS = (
    _Right(
        "read runs",
        tuple((verb, _GROUP, "finetunejobs") for verb in ("get", "list", "watch")),
        f"{_OPERATOR_ROLE}-view",
        Level.MISSING,
    ),
    _Right(
        "submit runs",
        tuple((verb, _GROUP, "finetunejobs") for verb in ("create", "patch", "delete")),
        f"{_OPERATOR_ROLE}-edit",
        Level.MISSING,
    ),
    _Right(
        "schedules and sweeps",
        tuple((verb, _GROUP, kind) for kind in ("finetuneschedules", "finetunesweeps") for verb in ("list", "create")),
        f"{_OPERATOR_ROLE}-edit",
    ),
    _Right(
        "read logs and events",
        (("list", "", "pods"), ("get", "", "pods/log"), ("list", "", "events")),
        "Kubernetes' ClusterRole view",
    ),
    _Right(
        "plan and chat in pods",
        (
            ("create", "", "pods"), ("delete", "", "pods"), ("create", "", "pods/portforward"),
            ("list", "batch", "jobs"),
        ),
        "Kubernetes' ClusterRole edit",
    ),
)  # fmt: skip


def check_rights(subject: Subject) -> Iterator[Finding]:
    """Check what the user may do."""
    for right in _RIGHTS:
        denied = [
            f"{verb} {resource}" for verb, group, resource in right.requests if not _may(subject, verb, group, resource)
        ]
        if denied:
            message = f"you may not {', '.join(denied)}: have {right.role} bound to you in the namespace"
            yield Finding(right.denied, right.purpose, message)
        else:
            yield Finding(Level.OK, right.purpose, "you have the rights")


def _may(subject: Subject, verb: str, group: str, resource: str) -> bool:
    name, _, subresource = resource.partition("/")
    return subject.api.may(verb, name, group, subject.namespace, subresource)


def check_namespace(subject: Subject) -> Iterator[Finding]:
    """Check whether the namespace exists, and its Pod Security level."""
    namespace = subject.api.get(f"/api/v1/namespaces/{subject.namespace}")
    if namespace is None:
        message = f"{subject.namespace} does not exist: kubectl create namespace {subject.namespace}"
        yield Finding(Level.MISSING, "namespace", message)
        return
    if namespace.get("status", {}).get("phase") == "Terminating":
        yield Finding(Level.MISSING, "namespace", f"{subject.namespace} is being deleted; choose another one")
        return
    level = namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce", "not set")
    message = f"{subject.namespace}; its Pod Security level is {level}, and pods of runs satisfy all levels"
    yield Finding(Level.OK, "namespace", message)


def check_quotas(subject: Subject) -> Iterator[Finding]:
    """Check whether quotas leave room for a run."""
    quotas = subject.api.list(f"/api/v1/namespaces/{subject.namespace}/resourcequotas")
    ranges = subject.api.list(f"/api/v1/namespaces/{subject.namespace}/limitranges")
    defaults = _list_defaults(ranges)
    findings = [finding for quota in quotas for finding in (*_find_exhausted(quota), *_find_required(quota, defaults))]
    yield from findings
    if not findings:
        names = ", ".join(quota["metadata"]["name"] for quota in quotas)
        message = f"{names} leaves room for a run" if quotas else "the namespace has no ResourceQuota"
        yield Finding(Level.OK, "quotas", message)


def _find_exhausted(quota: Mapping[str, Any]) -> Iterator[Finding]:
    from finetune_trainer.contract import parse_quantity

    status, name = quota.get("status", {}), quota["metadata"]["name"]
    for resource, hard in status.get("hard", {}).items():
        used = status.get("used", {}).get(resource, "0")
        if parse_quantity(used) >= parse_quantity(hard):
            level = Level.MISSING if resource in _BLOCKING else Level.WARNING
            message = f"ResourceQuota {name}: {used} of {hard} {resource} are used: end other runs, or have it raised"
            yield Finding(level, "quotas", message)


def _find_required(quota: Mapping[str, Any], defaults: set[str]) -> Iterator[Finding]:
    """Yield the resources that every pod must name, because a quota limits them and no default exists."""
    hard = {{"cpu": "requests.cpu", "memory": "requests.memory"}.get(key, key) for key in quota["spec"].get("hard", {})}
    required = [resource for resource in _RUN_RESOURCES if resource in hard - defaults]
    if required:
        fields = ", ".join(required)
        message = f"ResourceQuota {quota['metadata']['name']} refuses pods without {fields}"
        yield Finding(Level.WARNING, "quotas", f"{message}: set them in compute.resources")


def _list_defaults(ranges: list[dict[str, Any]]) -> set[str]:
    """Return the resources that LimitRanges set in containers that leave them out."""
    limits = [limit for each in ranges for limit in each["spec"].get("limits", []) if limit["type"] == "Container"]
    requests = {
        f"requests.{name}" for limit in limits for name in limit.get("defaultRequest", limit.get("default", {}))
    }
    return requests | {f"limits.{name}" for limit in limits for name in limit.get("default", {})}


def check_limits(subject: Subject) -> Iterator[Finding]:
    """Name the limits that the pods of runs must keep."""
    for limit_range in subject.api.list(f"/api/v1/namespaces/{subject.namespace}/limitranges"):
        name = limit_range["metadata"]["name"]
        for limit in limit_range["spec"].get("limits", []):
            if limit["type"] in ("Container", "Pod") and limit.get("max"):
                allowed = ", ".join(f"{key} {value}" for key, value in limit["max"].items())
                message = f"LimitRange {name} allows a {limit['type'].lower()} at most {allowed}"
                yield Finding(Level.WARNING, "limits", f"{message}: compute.resources and compute.scratch.size count")


def check_secrets(subject: Subject) -> Iterator[Finding]:
    """Check whether the Secrets exist that runs and schedules refer to. Their contents are not requested."""
    path = f"/apis/{_GROUP}/v1alpha1/namespaces/{subject.namespace}"
    objects = [
        *subject.api.list(f"{path}/finetunejobs")[:_MAX_RUNS],
        *subject.api.list(f"{path}/finetuneschedules"),
        *subject.api.list(f"{path}/finetunesweeps"),
    ]
    names = sorted({name for each in objects for name in _iter_secrets(each["spec"])})
    if not names:
        yield Finding(Level.OK, "Secrets", "no run of the namespace refers to a Secret")
    for name in names:
        secret = subject.api.get(f"/api/v1/namespaces/{subject.namespace}/secrets/{name}", accept=_METADATA_ONLY)
        if secret is None:
            yield Finding(Level.MISSING, "Secrets", f"Secret {name} does not exist, but a run refers to it: create it")
        else:
            yield Finding(Level.OK, "Secrets", f"Secret {name} exists")


def _iter_secrets(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, field in value.items():
            if key.endswith("SecretRef") and isinstance(field, dict):
                yield str(field.get("name"))
            else:
                yield from _iter_secrets(field)


NAMESPACE_CHECKS: tuple[tuple[str, Check], ...] = (
    ("namespace", check_namespace),
    ("rights", check_rights),
    ("quotas", check_quotas),
    ("limits", check_limits),
    ("Secrets", check_secrets),
)
