"""Within v1alpha1 a stored FineTuneJob keeps its meaning: no default changes, nothing more is required."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tests.compatibility.schema import defaults, required

RECORDED: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "first-api.yaml").read_text())


def test_recorded_default_of_every_field_is_unchanged() -> None:
    now = defaults()
    assert {path: _without_new(now.get(path), value) for path, value in RECORDED["defaults"].items()} == (
        RECORDED["defaults"]
    )


def test_field_without_recorded_default_still_has_none() -> None:
    assert not [path for path in RECORDED["fields without default"] if path in defaults()]


def test_no_field_of_a_stored_object_becomes_required() -> None:
    """A new object, all of whose fields are new, may require what it likes."""
    for path, names in required().items():
        if path in RECORDED["required"]:
            assert set(names) <= set(RECORDED["required"][path]), path


def _without_new(default: object, recorded: object) -> object:
    """The default of an object grows with each new field that has one."""
    if isinstance(default, dict) and isinstance(recorded, dict):
        return {name: _without_new(each, recorded[name]) for name, each in default.items() if name in recorded}
    return default
