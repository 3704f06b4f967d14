"""A spec with a value for every field of the API, generated from the CRD's schema so that it includes new fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter, ValidationError

from finetune_operator.api.labels import CONTROLLER_NAME
from finetune_operator.codegen.crd import build_root_schema

Schema = dict[str, Any]
Json = dict[str, Any] | list[Any]
FieldPath = tuple[str | int, ...]

# Each string field accepts one of these samples. Add one if a new field has another pattern.
STRING_SAMPLES = (
    "s3://bucket/key",
    "https://store.example",
    "name",
    "1",
    "nurse",
    "2026-11-23T08:00:00Z",
    "example.com/gpu",
    "en",
    f"sha256:{'0' * 64}",
)
MAP_KEY = "prompt"  # valid as a column, a label and a resource


def build_full_spec() -> dict[str, Any]:
    """Return a spec with a value for every field. It violates CEL rules that forbid some fields together."""
    spec = _build_object(build_root_schema()["properties"]["spec"])
    spec["compute"]["nodes"] = 2
    spec["managedBy"] = CONTROLLER_NAME  # a FineTuneJob of another controller is ignored
    return spec


def build_largest_spec(filler: str) -> dict[str, Any]:
    """Return a spec with the maximum of items and of characters in every field, made of `filler` where its pattern
    allows that. It may exceed limits of CEL rules, such as those in bytes, but no valid spec is larger."""
    return _build_largest_object(build_root_schema()["properties"]["spec"], filler)


def _build_largest_object(schema: Schema, filler: str) -> dict[str, Any]:
    if "additionalProperties" in schema:
        return {key: _build_largest(schema["additionalProperties"], filler) for key in _list_most_keys(schema)}
    return {name: _build_largest(subschema, filler) for name, subschema in schema["properties"].items()}


def _build_largest(schema: Schema, filler: str) -> object:
    if schema["type"] == "object":
        return _build_largest_object(schema, filler)
    if schema["type"] == "array":
        return [_build_largest(schema["items"], filler)] * schema["maxItems"]
    if schema["type"] == "string" and "enum" not in schema:
        return _build_longest_string(schema, filler)
    return max(schema["enum"], key=len) if "enum" in schema else _build_sample(schema)


def _list_most_keys(schema: Schema) -> list[str]:
    """Return the maximum number of keys. If only certain keys are allowed, a CEL rule lists them."""
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", [])]
    lists = [match[1] for rule in rules if (match := re.fullmatch(r"self\.all\(key, key in (\[.*\])\)", rule))]
    keys: list[str] = ast.literal_eval(lists[0]) if lists else [f"key{index}" for index in range(64)]
    return keys[: schema["maxProperties"]]


def _build_longest_string(schema: Schema, filler: str) -> str:
    length = schema["maxLength"]
    adapter = TypeAdapter[str](Annotated[str, StringConstraints(pattern=schema.get("pattern"), max_length=length)])
    prefixes = ("", *STRING_SAMPLES)
    candidates = [f"{prefix}{padding * length}"[:length] for padding in (filler, "x") for prefix in prefixes]
    for candidate in (*candidates, *STRING_SAMPLES):
        try:
            return adapter.validate_python(candidate)
        except ValidationError:
            continue
    raise AssertionError(f"no sample for {schema['pattern']}: add one to STRING_SAMPLES")


def iter_strings(value: object, path: FieldPath = ()) -> Iterator[tuple[FieldPath, str]]:
    """Yield the path and the value of every string."""
    if isinstance(value, str):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from iter_strings(item, (*path, key))


def iter_free_maps(schema: Schema, path: FieldPath = ()) -> Iterator[FieldPath]:
    """Yield the path of every map with arbitrary keys."""
    if "additionalProperties" in schema:
        yield path
    for name, subschema in schema.get("properties", {}).items():
        yield from iter_free_maps(subschema, (*path, name))
    if "items" in schema:
        yield from iter_free_maps(schema["items"], (*path, 0))


def iter_secret_fields(schema: Schema) -> Iterator[str]:
    """Yield every field that names a Secret."""
    for name, subschema in schema.get("properties", {}).items():
        if name.endswith("SecretRef") or name == "imagePullSecrets":
            yield name
        yield from iter_secret_fields(subschema.get("items", subschema))


def replace_at(value: Json, path: FieldPath, replacement: object) -> Json:
    """Return a copy with `replacement` at a path."""
    copy = value.copy()
    copy[path[0]] = replacement if len(path) == 1 else replace_at(copy[path[0]], path[1:], replacement)
    return copy


def _build_sample(schema: Schema) -> object:
    builders = {"object": _build_object, "array": _build_array, "string": _build_string, "boolean": lambda _: False}
    return builders.get(schema["type"], _build_number)(schema)


def _build_object(schema: Schema) -> dict[str, Any]:
    if "additionalProperties" in schema:
        return {MAP_KEY: _build_sample(schema["additionalProperties"])}
    return {name: _build_sample(subschema) for name, subschema in schema["properties"].items()}


def _build_array(schema: Schema) -> list[Any]:
    return [_build_sample(schema["items"])] * schema.get("minItems", 1)


def _build_number(schema: Schema) -> float:
    minimum: float = schema.get("minimum", 1)
    return minimum + (0.25 if schema["type"] == "number" else 0)


def _build_string(schema: Schema) -> str:
    if "enum" in schema:
        return str(schema["enum"][0])
    adapter = TypeAdapter[str](Annotated[str, StringConstraints(pattern=schema.get("pattern"))])
    for candidate in STRING_SAMPLES:
        try:
            return adapter.validate_python(candidate)
        except ValidationError:
            continue
    raise AssertionError(f"no sample for {schema['pattern']}: add one to STRING_SAMPLES")
