"""What the operator writes: a merge patch for a status, and an Event that says the same. Pure."""

from __future__ import annotations

import hashlib

from finetune_operator.api import API_VERSION, KIND, Condition, FineTuneJobStatus, ObjectMeta, OperatorReason
from finetune_operator.api.objects import Body
from finetune_operator.status.job_status import is_terminal

_COMPONENT = "finetune-operator"
_MESSAGE_MAX_LENGTH = 1024  # of an Event, by the API server
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
    """What turns `old` into `new` by RFC 7386; empty if they are equal."""
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
    """The one condition that says where the run is."""
    condition_types = ("Complete", "Failed") if is_terminal(status) else ("Running",)
    return next((condition for condition in status.conditions if condition.type in condition_types), None)


def build_transition_event(meta: ObjectMeta, old: FineTuneJobStatus, new: FineTuneJobStatus, now: str) -> Body | None:
    """The Event of a changed headline; None if it did not change."""
    old_headline, new_headline = find_headline_condition(old), find_headline_condition(new)
    if new_headline is None or (
        old_headline
        and (old_headline.type, old_headline.status, old_headline.reason)
        == (new_headline.type, new_headline.status, new_headline.reason)
    ):
        return None
    # Named by what it says: written twice, by a retry or a second operator, it is one Event.
    seed = "/".join(
        (
            meta.uid,
            new_headline.type,
            new_headline.status,
            new_headline.reason,
            new_headline.last_transition_time,
            str(new.attempts),
        )
    )
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{meta.name}.{hashlib.sha256(seed.encode()).hexdigest()[:16]}",
            "namespace": meta.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "type": "Warning" if new_headline.type == "Failed" or new_headline.reason in _WARNING_REASONS else "Normal",
        "reason": new_headline.reason,
        "message": new_headline.message[:_MESSAGE_MAX_LENGTH],
        "source": {"component": _COMPONENT},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
