"""Kubernetes manifests that serve a result, published beside it: vLLM on its own, and KServe with vLLM.

The builders are pure. Values that only the user knows are placeholders, which the comments of the files name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from finetune_trainer.modeling.servable import choose_vllm_rank, has_public_base_name
from finetune_trainer.records.adapter import AdapterInfo
from finetune_trainer.records.manifest import AdapterManifest
from finetune_trainer.reporting.adapter_info import get_run_name, parse_config

VLLM_NAME, KSERVE_NAME = "serve-vllm.yaml", "serve-kserve.yaml"
BASE_MODEL_PLACEHOLDER = "ORGANIZATION/BASE-MODEL"
TASK_IMAGE_PLACEHOLDER = "registry.example/finetune-task:0.1.0"
VLLM_IMAGE = "vllm/vllm-openai:v0.32.0"
_SECRET = "s3-credentials"
_CREDENTIALS = [
    {"name": key, "valueFrom": {"secretKeyRef": {"name": _SECRET, "key": key}}}
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
]
_PORT, _USER = 8000, 65532
_ADAPTERS, _CACHE = "/adapters", "/cache"
_MAX_NAME = 50
_HEAD = """\
# Serves {kind} {uri} with {server}. Check these values before you apply it:
#   {base_model}: the base model, which is downloaded from the Hugging Face hub
"""
_VLLM_HEAD = f"""\
#   {{image}}: an image of finetune-operator, whose sync-alias downloads the adapter
#   {_SECRET}: a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY that may read the adapter
"""
_KSERVE_HEAD = f"""\
#   {_SECRET}: a service account with a Secret of KServe that has the keys and the endpoint of the store
"""


@dataclass(frozen=True)
class ServedAdapter:
    """What the manifests need to know of an adapter."""

    name: str
    """Name of the objects, and of the adapter at the server."""
    source: str
    """S3 URI of the result, which ends with a slash, or of an alias, which is then followed."""
    base_model: str
    """Name of the base model on the hub, or a placeholder."""
    rank: int
    endpoint: str | None = None
    """Endpoint of the store, if it is not AWS."""
    image: str = TASK_IMAGE_PLACEHOLDER
    """Image that has `finetune-trainer sync-alias`."""
    revision: str = ""
    """Commit of the base model on the hub. Empty: the server chooses it."""
    region: str | None = None
    """Region of the store. If unset, sync-alias uses us-east-1."""

    @property
    def follows_alias(self) -> bool:
        return not self.source.endswith("/")


def describe_adapter_to_serve(manifest: AdapterManifest, adapter_info: AdapterInfo, image: str) -> ServedAdapter:
    """Return what a result says of its adapter. `image` is that of the trainer, or empty if it is not known."""
    config = parse_config(manifest)
    base_model = adapter_info.base_name if has_public_base_name(config) else BASE_MODEL_PLACEHOLDER
    return ServedAdapter(
        name=_to_object_name(get_run_name(manifest).rpartition("/")[2]),
        source=config.output.uri.rstrip("/") + "/",
        base_model=base_model,
        rank=choose_vllm_rank(config.training.lora.rank),
        endpoint=config.storage.endpoint,
        image=image or TASK_IMAGE_PLACEHOLDER,
        revision=manifest.model.revision if config.model.uri == f"hf://{base_model}" else "",
        region=config.storage.region,
    )


def render_vllm(adapter: ServedAdapter) -> str:
    """Return a Deployment of vLLM and its Service."""
    head = _render_head(adapter, "vLLM") + _VLLM_HEAD.format(image=adapter.image)
    return head + _to_yaml([build_deployment(adapter), _build_service(adapter)])


def render_kserve(adapter: ServedAdapter) -> str:
    """Return an LLMInferenceService of KServe, which loads adapters at the start of a pod alone."""
    head = _render_head(adapter, "KServe") + _KSERVE_HEAD
    return head + _to_yaml([build_llm_inference_service(adapter)])


def build_deployment(adapter: ServedAdapter) -> dict[str, Any]:
    """Return a Deployment whose pods download the adapter before vLLM starts. An alias is followed without restarts."""
    labels = {"app.kubernetes.io/name": adapter.name}
    download = _build_sync_container(adapter, "adapter", ["--once"])
    containers = [_build_vllm_container(adapter)]
    if adapter.follows_alias:
        reload_arguments = [f"--vllm-url=http://127.0.0.1:{_PORT}", f"--lora-name={adapter.name}"]
        containers.append(_build_sync_container(adapter, "sync", reload_arguments))
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [download],
        "containers": containers,
        "volumes": [
            {"name": "adapters", "emptyDir": {"sizeLimit": "4Gi"}},
            {"name": "cache", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": adapter.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def build_llm_inference_service(adapter: ServedAdapter) -> dict[str, Any]:
    """Return the object of `serving.kserve.io/v1alpha1`, with the fields of KServe's samples for LoRA adapters."""
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": {"name": adapter.name},
        "spec": {
            "model": {
                "uri": f"hf://{adapter.base_model}",
                "name": adapter.base_model,
                "lora": {
                    "adapters": [{"name": adapter.name, "uri": adapter.source.rstrip("/")}],
                    "maxRank": adapter.rank,
                },
            },
            "replicas": 1,
            "template": {
                "serviceAccountName": _SECRET,
                "containers": [{"name": "main", "resources": _GPU_RESOURCES}],
            },
            "router": {"route": {}, "gateway": {}, "scheduler": {}},
        },
    }


_GPU_RESOURCES = {
    "requests": {"cpu": "2", "memory": "16Gi", "nvidia.com/gpu": "1"},
    "limits": {"memory": "32Gi", "nvidia.com/gpu": "1"},
}
_CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _build_service(adapter: ServedAdapter) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": adapter.name}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": adapter.name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }


def _build_sync_container(adapter: ServedAdapter, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    endpoint = [f"--endpoint={adapter.endpoint}"] if adapter.endpoint else []
    region = [{"name": "AWS_REGION", "value": adapter.region}] if adapter.region else []
    return {
        "name": name,
        "image": adapter.image,
        "command": ["finetune-trainer"],
        "args": ["sync-alias", adapter.source, _ADAPTERS, *arguments, *endpoint],
        "env": [*_CREDENTIALS, *region],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {**_CONFINED, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "adapters", "mountPath": _ADAPTERS}],
    }


def _build_vllm_container(adapter: ServedAdapter) -> dict[str, Any]:
    current, revision = f"{_ADAPTERS}/current", [f"--revision={adapter.revision}"] if adapter.revision else []
    environment = {"HOME": _CACHE, "HF_HOME": f"{_CACHE}/huggingface"}
    if adapter.follows_alias:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "true"
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "name": "vllm",
        "image": VLLM_IMAGE,
        "command": ["vllm", "serve", adapter.base_model, *revision],
        "args": [
            f"--port={_PORT}",
            "--enable-lora",
            f"--max-lora-rank={adapter.rank}",
            f"--lora-modules={adapter.name}={current}",
            f"--tokenizer={current}",
            f"--generation-config={current}",
        ],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"name": "http", "containerPort": _PORT}],
        "startupProbe": {**health, "periodSeconds": 10, "failureThreshold": 180},
        "readinessProbe": {**health, "periodSeconds": 10},
        "livenessProbe": {**health, "periodSeconds": 20, "failureThreshold": 6},
        "resources": _GPU_RESOURCES,
        "securityContext": _CONFINED,
        "volumeMounts": [
            {"name": "adapters", "mountPath": _ADAPTERS, "readOnly": True},
            {"name": "cache", "mountPath": _CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _render_head(adapter: ServedAdapter, server: str) -> str:
    kind = "the champion of" if adapter.follows_alias else "the adapter"
    return _HEAD.format(kind=kind, uri=adapter.source, server=server, base_model=adapter.base_model)


def _to_object_name(text: str) -> str:
    """Return a name that a Service may have: a DNS label that begins with a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_MAX_NAME].rstrip("-")
    return name if name[:1].isalpha() else f"adapter-{name}".rstrip("-")


def _to_yaml(objects: Sequence[Mapping[str, Any]]) -> str:
    writer, buffer = YAML(), StringIO()
    writer.indent(mapping=2, sequence=4, offset=2)
    writer.width = 120
    writer.representer.ignore_aliases = lambda _: True
    writer.dump_all(objects, buffer)
    return buffer.getvalue()
