"""Within v1alpha1 a stored object keeps its meaning: no default changes, nothing more is required."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.compatibility.crd_fields import TEMPLATE_PATH, collect_defaults, collect_required_fields

from finetune_operator.api import KIND
from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND

FILES = {KIND: "first-api.yaml", SCHEDULE_KIND: "first-schedule-api.yaml", SWEEP_KIND: "first-sweep-api.yaml"}
RECORDED: dict[str, dict[str, Any]] = {
    kind: yaml.safe_load((Path(__file__).parent / name).read_text()) for kind, name in FILES.items()
}
for_each_kind = pytest.mark.parametrize("kind", FILES)


@for_each_kind
def test_crd_recorded_defaults_are_unchanged(kind: str) -> None:
    now, recorded = collect_defaults(kind), RECORDED[kind]["defaults"]
    assert {path: _drop_new_fields(now.get(path), value) for path, value in recorded.items()} == recorded


@for_each_kind
def test_crd_field_without_recorded_default_has_none(kind: str) -> None:
    without_default = RECORDED[kind]["fields without default"]
    assert not [path for path in without_default if path in collect_defaults(kind)]


@for_each_kind
def test_crd_recorded_object_gains_no_required_field(kind: str) -> None:
    """Only recorded objects are compared, because a new object may have required fields."""
    recorded = RECORDED[kind]["required"]
    for path, names in collect_required_fields(kind).items():
        if path in recorded:
            assert set(names) <= set(recorded[path]), path


@pytest.mark.parametrize("kind", [SCHEDULE_KIND, SWEEP_KIND])
def test_crd_template_has_defaults_and_required_fields_of_finetunejob(kind: str) -> None:
    """The template is therefore covered by what is recorded of the FineTuneJob."""
    job_defaults, job_required = collect_defaults(KIND), collect_required_fields(KIND)
    defaults = _select_template(collect_defaults(kind))
    assert defaults == {path: job_defaults[path] for path in defaults}
    required = _select_template(collect_required_fields(kind))
    assert required == {path: job_required[path] for path in required}
    assert required


def _select_template(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the template by their path in a FineTuneJob."""
    prefix = len(TEMPLATE_PATH)
    return {f"spec{path[prefix:]}": value for path, value in values.items() if path.startswith(TEMPLATE_PATH)}


def _drop_new_fields(default: object, recorded: object) -> object:
    """The default of an object grows with each new field that has one."""
    if isinstance(default, dict) and isinstance(recorded, dict):
        return {name: _drop_new_fields(value, recorded[name]) for name, value in default.items() if name in recorded}
    return default
