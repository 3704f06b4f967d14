"""Merge patches with the changed fields only, and one Event for each transition."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api import FineTuneJobStatus, ObjectMeta, OperatorReason
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_operator.status.events import build_transition_event, create_merge_patch
from finetune_operator.status.job_status import compute_status

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
NOW, LATER = "2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"


@pytest.mark.parametrize(
    ("old", "new", "patch"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {}, {"a": None}),
        ({}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
        ({"a": {"b": 1}}, {"a": {"b": 1}}, {}),
        ({"a": [1, 2]}, {"a": [2]}, {"a": [2]}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": None}}),
        ({"a": 0}, {"a": 0.0}, {}),
        ({}, {"a": {}}, {"a": {}}),
    ],
)
def test_merge_patch_changed_fields_only(old: dict[str, Any], new: dict[str, Any], patch: dict[str, Any]) -> None:
    assert create_merge_patch(old, new) == patch


def _build_status(
    reason: OperatorReason, terminal: bool = False, before: FineTuneJobStatus | None = None
) -> FineTuneJobStatus:
    observed = ObservedState(blocked=Blocked(reason, "words " * 400, terminal))
    return compute_status(META, before or FineTuneJobStatus(), observed, NOW)


def test_transition_new_reason_creates_event() -> None:
    event = build_transition_event(META, FineTuneJobStatus(), _build_status(OperatorReason.JOB_PENDING), NOW)
    assert event
    assert (event["type"], event["reason"], event["involvedObject"]["uid"]) == ("Normal", "JobPending", "uid-bot")
    assert len(event["message"]) <= 1024
    assert event["metadata"]["name"].startswith("bot.")


def test_transition_same_reason_creates_no_event() -> None:
    old = _build_status(OperatorReason.JOB_PENDING)
    assert build_transition_event(META, old, old, NOW) is None
    assert build_transition_event(META, old, old.model_copy(update={"attempts": 2}), NOW) is None


def test_transition_to_rejected_or_invalid_is_warning() -> None:
    pending = _build_status(OperatorReason.JOB_PENDING)
    for new in (_build_status(OperatorReason.JOB_REFUSED), _build_status(OperatorReason.INVALID_SPEC, True, pending)):
        event = build_transition_event(META, pending, new, NOW)
        assert event
        assert event["type"] == "Warning"


def test_transition_repeated_has_same_event_name() -> None:
    new = _build_status(OperatorReason.JOB_REFUSED)
    first, second = (build_transition_event(META, FineTuneJobStatus(), new, now) for now in (NOW, LATER))
    assert first
    assert second
    assert first["metadata"]["name"] == second["metadata"]["name"]
