"""The defaults and the required fields of `spec` in the schemas of the CRDs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from finetune_operator.api import KIND
from finetune_operator.codegen.crd import DEFINITIONS, build_root_schema

Schema = dict[str, Any]
TEMPLATE_PATH = "spec.template.spec"
"""The path of the spec of the FineTuneJobs in a FineTuneSchedule and a FineTuneSweep."""


def collect_defaults(kind: str = KIND) -> dict[str, Any]:
    """Return the default of each field that has one, by path."""
    return {path: schema["default"] for path, schema in _list_spec_fields(kind) if "default" in schema}


def list_fields_without_default(kind: str = KIND) -> list[str]:
    """Return the paths of the fields without a default."""
    return [path for path, schema in _list_spec_fields(kind) if "default" not in schema]


def collect_required_fields(kind: str = KIND) -> dict[str, list[str]]:
    """Return the required fields of each object, by path."""
    fields = _list_spec_fields(kind)
    return {path: sorted(schema.get("required", [])) for path, schema in fields if "properties" in schema}


@cache
def _list_spec_fields(kind: str) -> list[tuple[str, Schema]]:
    definition = next(each for each in DEFINITIONS if each.kind == kind)
    return list(_iter_fields("spec", build_root_schema(definition)["properties"]["spec"]))


def _iter_fields(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, subschema in schema.get("properties", {}).items():
        yield from _iter_fields(f"{path}.{name}", subschema)
    if "items" in schema:
        yield from _iter_fields(f"{path}[]", schema["items"])
