"""Builders of what the operator writes about a status: a merge patch, and an Event for a transition."""

from __future__ import annotations

import hashlib

from finetune_operator.api import (
    API_VERSION,
    KIND,
    Condition,
    EventReason,
    FineTuneJobStatus,
    ObjectMeta,
    OperatorReason,
)
from finetune_operator.api.objects import Body
from finetune_operator.status.job_status import is_terminal

_COMPONENT = "finetune-operator"
_MESSAGE_MAX_LENGTH = 1024  # limit of the API server for Events
_WARNING_REASONS = frozenset(
    {
        OperatorReason.UNSCHEDULABLE,
        OperatorReason.IMAGE_PULL_FAILED,
        OperatorReason.CONTAINER_CONFIG_ERROR,
        OperatorReason.RETRYING,
        OperatorReason.JOB_REFUSED,
    }
)


def create_merge_patch(old: Body, new: Body) -> Body:
    """Return the JSON merge patch (RFC 7386) that turns `old` into `new`. It is empty if they are equal."""
    patch: Body = {key: None for key in old if key not in new}
    for key, value in new.items():
        old_value = old.get(key)
        if isinstance(old_value, dict) and isinstance(value, dict):
            if nested_patch := create_merge_patch(old_value, value):
                patch[key] = nested_patch
        elif key not in old or old_value != value:
            patch[key] = value
    return patch


def find_headline_condition(status: FineTuneJobStatus) -> Condition | None:
    """Return the condition that summarizes the status, or None if there is none yet."""
    condition_types = ("Complete", "Failed") if is_terminal(status) else ("Running",)
    return next((condition for condition in status.conditions if condition.type in condition_types), None)


def build_transition_event(meta: ObjectMeta, old: FineTuneJobStatus, new: FineTuneJobStatus, now: str) -> Body | None:
    """Return the Event for a changed headline condition, or None if it has not changed.

    The name is a hash of the content, so that a retry or a second operator does not create the Event twice.
    """
    old_headline, new_headline = find_headline_condition(old), find_headline_condition(new)
    if new_headline is None or (old_headline and _get_state(old_headline) == _get_state(new_headline)):
        return None
    identity = (meta.uid, *_get_state(new_headline), new_headline.last_transition_time, str(new.attempts))
    is_warning = new_headline.type == "Failed" or new_headline.reason in _WARNING_REASONS
    event = _build_event(meta, identity, now)
    return {**event, **_describe(new_headline.reason, new_headline.message, is_warning)}


def build_cleaning_event(meta: ObjectMeta, reason: EventReason, message: str, now: str) -> Body:
    """Return the Event for a task that has deleted checkpoints, or that could not. It is not repeated."""
    event = _build_event(meta, (meta.uid, reason, message), now)
    return {**event, **_describe(reason, message, reason is EventReason.CLEANING_FAILED)}


def _describe(reason: str, message: str, is_warning: bool) -> Body:
    return {
        "type": "Warning" if is_warning else "Normal",
        "reason": reason,
        "message": message[:_MESSAGE_MAX_LENGTH],
    }


def _build_event(meta: ObjectMeta, identity: tuple[str, ...], now: str) -> Body:
    digest = hashlib.sha256("/".join(identity).encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name}.{digest}", "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "source": {"component": _COMPONENT},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _get_state(condition: Condition) -> tuple[str, str, str]:
    return condition.type, condition.status, condition.reason
