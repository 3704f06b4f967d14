"""Within v1alpha1 a stored FineTuneJob keeps its meaning: no default changes, nothing more is required."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tests.support.compatibility.crd_fields import collect_defaults, collect_required_fields

RECORDED: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "first-api.yaml").read_text())


def test_crd_recorded_defaults_are_unchanged() -> None:
    now = collect_defaults()
    assert {path: _drop_new_fields(now.get(path), value) for path, value in RECORDED["defaults"].items()} == (
        RECORDED["defaults"]
    )


def test_crd_field_without_recorded_default_has_none() -> None:
    assert not [path for path in RECORDED["fields without default"] if path in collect_defaults()]


def test_crd_recorded_object_gains_no_required_field() -> None:
    """Only recorded objects are compared, because a new object may have required fields."""
    for path, names in collect_required_fields().items():
        if path in RECORDED["required"]:
            assert set(names) <= set(RECORDED["required"][path]), path


def _drop_new_fields(default: object, recorded: object) -> object:
    """The default of an object grows with each new field that has one."""
    if isinstance(default, dict) and isinstance(recorded, dict):
        return {name: _drop_new_fields(value, recorded[name]) for name, value in default.items() if name in recorded}
    return default
