"""Merge patches with the changed fields only, and one Event for each transition."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.operator.builders import Builders

from finetune_operator.api import FineTuneJobStatus, ObjectMeta, OperatorReason
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_operator.status.events import build_transition_event, create_merge_patch
from finetune_operator.status.job_status import compute_status

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
NOW = "2026-11-23T08:00:00Z"


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
    event = build_transition_event(META, FineTuneJobStatus(), _build_status(OperatorReason.JOB_PENDING), 7, NOW)
    assert event
    assert (event["type"], event["reason"], event["involvedObject"]["uid"]) == ("Normal", "JobPending", "uid-bot")
    assert len(event["message"]) <= 1024
    assert event["metadata"]["name"].startswith("bot.")


def test_transition_same_reason_creates_no_event() -> None:
    old = _build_status(OperatorReason.JOB_PENDING)
    assert build_transition_event(META, old, old, 7, NOW) is None
    assert build_transition_event(META, old, old.model_copy(update={"attempts": 2}), 7, NOW) is None


def test_transition_to_rejected_or_invalid_is_warning() -> None:
    pending = _build_status(OperatorReason.JOB_PENDING)
    for new in (_build_status(OperatorReason.JOB_REFUSED), _build_status(OperatorReason.INVALID_SPEC, True, pending)):
        event = build_transition_event(META, pending, new, 7, NOW)
        assert event
        assert event["type"] == "Warning"


def test_transition_event_names_follow_order_of_writes() -> None:
    """`kubectl describe` shows Events of one second in the order of their names."""
    new = _build_status(OperatorReason.JOB_REFUSED)
    events = [build_transition_event(META, FineTuneJobStatus(), new, version, NOW) for version in (9, 9, 10, 4096)]
    names = [event["metadata"]["name"] for event in events if event]
    assert names == sorted(names)
    assert len(set(names)) == 3


def test_transition_of_ended_pod_creates_no_event() -> None:
    """The Event of the end follows within a second."""
    pod = Builders.pod(state=Builders.terminated(0), phase="Succeeded")
    status = compute_status(META, FineTuneJobStatus(), ObservedState(Builders.job(), (pod,)), NOW)
    assert status.reason == "Finishing"
    assert build_transition_event(META, FineTuneJobStatus(), status, 7, NOW) is None
