"""Checks of the cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from finetune_cli.examination.findings import Check, Finding, Level, Subject

_OLDEST_VERSION = (1, 31)
_OPERATOR_LABELS = {"labelSelector": "app.kubernetes.io/name=finetune-operator"}
_INSTALL = "install it with Helm: docs/getting-started/install.md"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_GPU_RESOURCE = re.compile(r"[a-z0-9.-]+/(gpu|mig-.+|[a-z0-9.-]*gpu[a-z0-9.-]*|gaudi|tpu)")


def check_version(subject: Subject) -> Iterator[Finding]:
    """Check the version of the API server."""
    found = subject.api.get("/version") or {}
    numbers = tuple(int(re.sub(r"\D", "", str(found.get(key, "0"))) or 0) for key in ("major", "minor"))
    oldest = ".".join(map(str, _OLDEST_VERSION))
    if numbers < _OLDEST_VERSION:
        message = f"it is Kubernetes {found.get('gitVersion')}: upgrade to {oldest} or newer"
        yield Finding(Level.MISSING, "API server", message)
    else:
        yield Finding(Level.OK, "API server", f"Kubernetes {found.get('gitVersion')}")


def check_kinds(subject: Subject) -> Iterator[Finding]:
    """Check whether the CRDs are there, and have the fields of this version."""
    from pydantic import BaseModel

    from finetune_operator.api import GROUP, VERSION, FineTuneJobSpec
    from finetune_operator.api.schedule import FineTuneScheduleSpec
    from finetune_operator.api.sweep import FineTuneSweepSpec

    document = subject.api.get(f"/openapi/v3/apis/{GROUP}/{VERSION}") or {}
    schemas = document.get("components", {}).get("schemas", {})
    served = {name.rpartition(".")[2]: schema for name, schema in schemas.items()}
    specs: dict[str, type[BaseModel]] = {
        "FineTuneJob": FineTuneJobSpec, "FineTuneSchedule": FineTuneScheduleSpec, "FineTuneSweep": FineTuneSweepSpec,
    }  # fmt: skip
    for kind, spec in specs.items():
        if kind not in served:
            yield Finding(Level.MISSING, kind, f"the cluster has no such kind; {_INSTALL}")
        else:
            spec_schema = served[kind].get("properties", {}).get("spec", {})
            yield _compare_fields(kind, list_fields(spec_schema), list_fields(spec.model_json_schema(by_alias=True)))


def _compare_fields(kind: str, served: set[str], own: set[str]) -> Finding:
    if lacking := sorted(own - served):
        message = f"its CRD lacks {_name_some(lacking)}: upgrade the chart and its CRDs"
        return Finding(Level.WARNING, kind, message)
    if unknown := sorted(served - own):
        message = f"its CRD is newer than this finetune {version('finetune-operator')}, which lacks"
        return Finding(Level.WARNING, kind, f"{message} {_name_some(unknown)}: upgrade finetune")
    return Finding(Level.OK, kind, "its CRD has the fields of this version")


def _name_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more fields" if len(names) > 3 else "")


def list_fields(schema: Mapping[str, Any], depth: int = 2) -> set[str]:
    """Return the fields of a schema and those of its sections, such as `spec.training.epochs`."""
    return set(_iter_fields(schema, schema.get("$defs", {}), "spec", depth))


def _iter_fields(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str, depth: int) -> Iterator[str]:
    for name, field in _resolve(schema, definitions).get("properties", {}).items():
        yield f"{path}.{name}"
        if depth > 1:
            yield from _iter_fields(field, definitions, f"{path}.{name}", depth - 1)


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of an object behind a reference, or behind the choice between it and nothing."""
    choices = [each for each in (*schema.get("anyOf", ()), *schema.get("allOf", ())) if "$ref" in each]
    reference = schema.get("$ref") or (choices[0]["$ref"] if choices else "")
    found: Mapping[str, Any] = definitions.get(reference.rpartition("/")[2], {}) if reference else schema
    return found


def check_operator(subject: Subject) -> Iterator[Finding]:
    """Check whether an operator runs."""
    deployments = subject.api.list("/apis/apps/v1/deployments", **_OPERATOR_LABELS)
    if not deployments:
        yield Finding(Level.MISSING, "operator", f"there is no Deployment of finetune-operator; {_INSTALL}")
    for deployment in deployments:
        metadata = deployment["metadata"]
        place = f"Deployment {metadata['name']} in namespace {metadata['namespace']}"
        if deployment.get("status", {}).get("availableReplicas", 0):
            yield Finding(Level.OK, "operator", f"{place} runs")
        else:
            message = f"{place} has no available pod: see kubectl -n {metadata['namespace']} describe pods"
            yield Finding(Level.MISSING, "operator", message)


def check_gpus(subject: Subject) -> Iterator[Finding]:
    """Check whether nodes have GPUs."""
    counts: dict[str, int] = {}
    for node in subject.api.list("/api/v1/nodes"):
        for name, quantity in node.get("status", {}).get("allocatable", {}).items():
            if _GPU_RESOURCE.fullmatch(name) and str(quantity).isdecimal() and quantity != "0":
                counts[name] = counts.get(name, 0) + int(quantity)
    if counts:
        described = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        yield Finding(Level.OK, "GPUs", f"the nodes have {described}")
    else:
        message = "no node has a GPU: install the device plugin of its vendor, or set compute.gpusPerNode to 0"
        yield Finding(Level.WARNING, "GPUs", message)


def check_profiles(subject: Subject) -> Iterator[Finding]:
    """List the compute profiles."""
    names: list[str] = []
    for config_map in subject.api.list("/api/v1/configmaps", **_OPERATOR_LABELS):
        content = config_map.get("data", {}).get("profiles.json")
        names += sorted(json.loads(content).get("profiles", {})) if content else []
    message = f"the installation has {', '.join(names)}" if names else "the installation has none; runs need none"
    yield Finding(Level.OK, "compute profiles", message)


def check_storage_class(subject: Subject) -> Iterator[Finding]:
    """Check whether there is a default StorageClass."""
    classes = subject.api.list("/apis/storage.k8s.io/v1/storageclasses")
    default = [
        each["metadata"]["name"]
        for each in classes
        if each["metadata"].get("annotations", {}).get(_DEFAULT_CLASS) == "true"
    ]
    if default:
        yield Finding(Level.OK, "StorageClass", f"the default is {default[0]}")
    else:
        message = "there is no default; runs need one only for claims without a class, such as a model cache"
        yield Finding(Level.WARNING, "StorageClass", message)


def check_kueue(subject: Subject) -> Iterator[Finding]:
    """Check whether Kueue is installed, and list the queues of the namespace."""
    if subject.api.get("/apis/kueue.x-k8s.io") is None:
        yield Finding(Level.OK, "Kueue", "it is not installed; runs start without a queue")
        return
    path = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{subject.namespace}/localqueues"
    queues = [queue["metadata"]["name"] for queue in subject.api.list(path)]
    message = f"queues of the namespace: {', '.join(queues)}" if queues else "the namespace has no LocalQueue"
    yield Finding(Level.OK if queues else Level.WARNING, "Kueue", message)


def check_monitoring(subject: Subject) -> Iterator[Finding]:
    """Check whether Prometheus' operator is installed."""
    is_installed = subject.api.get("/apis/monitoring.coreos.com") is not None
    message = "Prometheus' operator is installed" if is_installed else "Prometheus' operator is not installed"
    advice = "set monitoring.enabled of the chart" if is_installed else "metrics can be scraped without it"
    yield Finding(Level.OK, "metrics", f"{message}; {advice}")


CLUSTER_CHECKS: tuple[tuple[str, Check], ...] = (
    ("API server", check_version),
    ("kinds", check_kinds),
    ("operator", check_operator),
    ("GPUs", check_gpus),
    ("compute profiles", check_profiles),
    ("StorageClass", check_storage_class),
    ("Kueue", check_kueue),
    ("metrics", check_monitoring),
)
