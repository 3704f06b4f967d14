"""Reads the manifest of an object: a YAML file or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_operator.api import API_VERSION, GROUP, KIND
from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.client.errors import InvalidManifest
from finetune_trainer.text import to_one_line

Manifest = str | Path | Mapping[str, Any]
"""Path of a YAML file, or an object as a mapping."""
KINDS = (KIND, SCHEDULE_KIND, SWEEP_KIND)


def read_manifest(manifest: Manifest, namespace: str) -> dict[str, Any]:
    """Return the object of a manifest for a namespace. Raises `InvalidManifest`."""
    source = "the manifest" if isinstance(manifest, Mapping) else str(manifest)
    body = dict(manifest) if isinstance(manifest, Mapping) else _read_file(Path(manifest))
    problems = [*_find_type_problems(body), *_find_metadata_problems(body.get("metadata"), namespace)]
    if problems:
        raise _build_error(source, problems)
    return {**body, "metadata": {**body["metadata"], "namespace": namespace}}


def _read_file(path: Path) -> dict[str, Any]:
    from finetune_trainer.config.documents import DocumentError, read_documents, to_plain

    try:
        documents = [to_plain(document) for document in read_documents(path)]
    except DocumentError as error:
        raise _build_error(str(path), [str(error)]) from None
    if len(documents) != 1:
        names = "; ".join(_describe_document(document) for document in documents) or "none"
        problem = f"expected one object, but the file has {len(documents)} YAML documents ({names}); use one file each"
        raise _build_error(str(path), [problem])
    if not isinstance(documents[0], dict):
        raise _build_error(str(path), ["is not an object: it is not a mapping"])
    return documents[0]


def _describe_document(document: object) -> str:
    if not isinstance(document, dict):
        return "not a mapping"
    metadata = document.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    return f"{document.get('kind', 'no kind')} {name}".strip()


def _find_type_problems(body: Mapping[str, Any]) -> list[str]:
    problems = []
    if body.get("kind") not in KINDS:
        problems.append(f"kind must be {', '.join(KINDS[:-1])} or {KINDS[-1]} (it is {body.get('kind')!r})")
    if not str(body.get("apiVersion", "")).startswith(f"{GROUP}/"):
        problems.append(f"apiVersion must be {API_VERSION} (it is {body.get('apiVersion')!r})")
    return problems


def _find_metadata_problems(metadata: object, namespace: str) -> list[str]:
    if not isinstance(metadata, Mapping):
        return ["metadata: a mapping is required"]
    if not metadata.get("name") and not metadata.get("generateName"):
        return ["metadata.name: this field is required"]
    own_namespace = metadata.get("namespace", namespace)
    if own_namespace != namespace:
        problem = f"metadata.namespace is {own_namespace!r}, but the client's is {namespace!r}"
        return [f"{problem}; choose the same namespace (-n), or remove the field"]
    return []


def _build_error(source: str, problems: list[str]) -> InvalidManifest:
    lines = [to_one_line(problem) for problem in problems]
    return InvalidManifest(to_one_line(f"{source}: {'; '.join(lines)}"), lines)
