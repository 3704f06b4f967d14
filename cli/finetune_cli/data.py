"""Results of the client as what JSON can represent. The names of fields are those of the API: camelCase."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from pydantic import BaseModel
from pydantic.alias_generators import to_camel


def to_data(value: object) -> object:
    """Convert a dataclass, a model, or a collection of them. Keys of dictionaries are kept."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if is_dataclass(value) and not isinstance(value, type):
        return {_name_field(field.name): to_data(value.__dict__[field.name]) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_data(item) for item in value]
    return value


def _name_field(name: str) -> str:
    """Return the name of a field as the API spells it: `adapterURI`."""
    return to_camel(name).removesuffix("Uri") + "URI" if name.endswith("_uri") else to_camel(name)
