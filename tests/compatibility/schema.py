"""The defaults and the required fields of `spec` as the CRD has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_operator.codegen.crd import build_root_schema

Schema = dict[str, Any]


def defaults() -> dict[str, Any]:
    """By path of a field: the default that the API server writes."""
    return {path: schema["default"] for path, schema in _fields() if "default" in schema}


def fields_without_default() -> list[str]:
    """Paths of the others."""
    return [path for path, schema in _fields() if "default" not in schema]


def required() -> dict[str, list[str]]:
    """By path of an object: the fields that must be there."""
    return {path: sorted(schema.get("required", [])) for path, schema in _fields() if "properties" in schema}


def _fields() -> Iterator[tuple[str, Schema]]:
    yield from _below("spec", build_root_schema()["properties"]["spec"])


def _below(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from _below(f"{path}.{name}", each)
    if "items" in schema:
        yield from _below(f"{path}[]", schema["items"])
