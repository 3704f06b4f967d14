"""The defaults and the required fields of `spec` in the schema of the CRD."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from finetune_operator.codegen.crd import build_root_schema

Schema = dict[str, Any]


def collect_defaults() -> dict[str, Any]:
    """Return the default of each field that has one, by path."""
    return {path: schema["default"] for path, schema in _list_spec_fields() if "default" in schema}


def list_fields_without_default() -> list[str]:
    """Return the paths of the fields without a default."""
    return [path for path, schema in _list_spec_fields() if "default" not in schema]


def collect_required_fields() -> dict[str, list[str]]:
    """Return the required fields of each object, by path."""
    return {path: sorted(schema.get("required", [])) for path, schema in _list_spec_fields() if "properties" in schema}


@cache
def _list_spec_fields() -> list[tuple[str, Schema]]:
    return list(_iter_fields("spec", build_root_schema()["properties"]["spec"]))


def _iter_fields(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, subschema in schema.get("properties", {}).items():
        yield from _iter_fields(f"{path}.{name}", subschema)
    if "items" in schema:
        yield from _iter_fields(f"{path}[]", schema["items"])
