"""Builders of what the operator writes about a status: a merge patch, and an Event for a transition."""

from __future__ import annotations

from finetune_operator.api import API_VERSION, KIND, Condition, FineTuneJobStatus, ObjectMeta, OperatorReason
from finetune_operator.api.objects import Body

_COMPONENT = "finetune-operator"
_MESSAGE_MAX_LENGTH = 1024  # limit of the API server for Events
_WARNING_REASONS = frozenset(
    {
        OperatorReason.UNSCHEDULABLE,
        OperatorReason.IMAGE_PULL_FAILED,
        OperatorReason.GPU_UNAVAILABLE,
        OperatorReason.CLAIM_NOT_FOUND,
        OperatorReason.SECRET_NOT_FOUND,
        OperatorReason.CONFIG_MAP_NOT_FOUND,
        OperatorReason.KEY_NOT_FOUND,
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
    """Return the condition that has the message of the status, which is the first, or None if there is none yet."""
    return next(iter(status.conditions), None)


def build_transition_event(
    meta: ObjectMeta, old: FineTuneJobStatus, new: FineTuneJobStatus, status_version: int, now: str
) -> Body | None:
    """Return the Event for a changed headline condition, or None if it has not changed or soon changes again.

    The name contains the resource version of the FineTuneJob with the new status, so that nobody creates the Event
    twice. `kubectl describe` sorts Events by `lastTimestamp`, whose resolution is one second, and leaves those of one
    second in the order of their names:
    https://github.com/kubernetes/kubectl/blob/master/pkg/util/event/sorted_event_list.go
    """
    old_headline, new_headline = find_headline_condition(old), find_headline_condition(new)
    if new_headline is None or (old_headline and _get_state(old_headline) == _get_state(new_headline)):
        return None
    if new_headline.reason == OperatorReason.FINISHING:
        return None
    return _build_event(meta, new_headline, f"{meta.name}.{status_version:016x}", now)


def _build_event(meta: ObjectMeta, condition: Condition, name: str, now: str) -> Body:
    """Return an Event about the FineTuneJob with the reason and the message of the condition."""
    is_warning = condition.type == "Failed" or condition.reason in _WARNING_REASONS
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "type": "Warning" if is_warning else "Normal",
        "reason": condition.reason,
        "message": condition.message[:_MESSAGE_MAX_LENGTH],
        "source": {"component": _COMPONENT},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _get_state(condition: Condition) -> tuple[str, str, str]:
    return condition.type, condition.status, condition.reason
