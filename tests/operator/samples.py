"""A FineTuneJob in which every field of the API is set, made from the CRD's schema, so that new fields are in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter, ValidationError

from finetune_operator.codegen.crd import build_root_schema

Schema = dict[str, Any]
Json = dict[str, Any] | list[Any]
Path = tuple[str | int, ...]

# One of these fits the pattern of any string; add one if a field brings a pattern of its own.
STRINGS = ("s3://bucket/key", "https://store.example", "name", "1", "nurse", "2026-11-23T08:00:00Z", "example.com/gpu")
KEY = "prompt"  # a column's name, a label, a resource


def full_spec() -> dict[str, Any]:
    """A value for every field; CEL's rules, which forbid some together, are the API server's."""
    spec = _object(build_root_schema()["properties"]["spec"])
    spec["compute"]["nodes"] = 2
    return spec


def strings(value: object, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every string, each with its path."""
    if isinstance(value, str):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from strings(each, (*path, key))


def maps(schema: Schema, path: Path = ()) -> Iterator[Path]:
    """Every map with free keys."""
    if "additionalProperties" in schema:
        yield path
    for name, each in schema.get("properties", {}).items():
        yield from maps(each, (*path, name))
    if "items" in schema:
        yield from maps(schema["items"], (*path, 0))


def references(schema: Schema) -> Iterator[str]:
    """Every field by which a Secret is named."""
    for name, each in schema.get("properties", {}).items():
        if name.endswith("SecretRef") or name == "imagePullSecrets":
            yield name
        yield from references(each.get("items", each))


def replaced(value: Json, path: Path, new: object) -> Json:
    """A copy with another value at a path."""
    copy = value.copy()
    copy[path[0]] = new if len(path) == 1 else replaced(copy[path[0]], path[1:], new)
    return copy


def _sample(schema: Schema) -> object:
    kinds = {"object": _object, "array": _array, "string": _string, "boolean": lambda _: False}
    return kinds.get(schema["type"], _number)(schema)


def _object(schema: Schema) -> dict[str, Any]:
    if "additionalProperties" in schema:
        return {KEY: _sample(schema["additionalProperties"])}
    return {name: _sample(each) for name, each in schema["properties"].items()}


def _array(schema: Schema) -> list[Any]:
    return [_sample(schema["items"])] * schema.get("minItems", 1)


def _number(schema: Schema) -> float:
    lowest: float = schema.get("minimum", 1)
    return lowest + (0.25 if schema["type"] == "number" else 0)


def _string(schema: Schema) -> str:
    if "enum" in schema:
        return str(schema["enum"][0])
    adapter = TypeAdapter[str](Annotated[str, StringConstraints(pattern=schema.get("pattern"))])
    for each in STRINGS:
        try:
            return adapter.validate_python(each)
        except ValidationError:
            continue
    raise AssertionError(f"no sample for {schema['pattern']}: add one to STRINGS")
