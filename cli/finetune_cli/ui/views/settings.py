"""Fields of a spec as a table of names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

_ACTIONS = ("suspend", "cancel")


def list_settings(spec: BaseModel) -> list[tuple[str, str]]:
    """Return name and value of each field that differs from its default, such as `training.lora.rank`."""
    fields = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return list(flatten({name: value for name, value in fields.items() if name not in _ACTIONS}))


def flatten(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and value of each field of an object."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from flatten(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}[{index}]")
    else:
        yield path, format_value(value)


def format_value(value: object) -> str:
    """Return a value as in YAML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(format_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
