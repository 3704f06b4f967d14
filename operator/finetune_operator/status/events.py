"""What the operator writes: a merge patch for a status, and an Event that says the same. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from finetune_operator.api import API_VERSION, KIND, Condition, FineTuneJobStatus, Metadata, OperatorReason
from finetune_operator.status.job_status import is_terminal

Body = dict[str, Any]

_COMPONENT = "finetune-operator"
_MESSAGE_MAX_LENGTH = 1024  # of an Event, by the API server
_PROBLEMS = frozenset(
    {
        OperatorReason.UNSCHEDULABLE,
        OperatorReason.IMAGE_PULL_FAILED,
        OperatorReason.CONTAINER_CONFIG_ERROR,
        OperatorReason.RETRYING,
        OperatorReason.JOB_REFUSED,
    }
)


def merge_patch(old: Body, new: Body) -> Body:
    """What turns `old` into `new` by RFC 7386; empty if they are equal."""
    patch: Body = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif key not in old or before != value:
            patch[key] = value
    return patch


def headline(status: FineTuneJobStatus) -> Condition | None:
    """The one condition that says where the run is."""
    wanted = ("Complete", "Failed") if is_terminal(status) else ("Running",)
    return next((each for each in status.conditions if each.type in wanted), None)


def transition(meta: Metadata, old: FineTuneJobStatus, new: FineTuneJobStatus, now: str) -> Body | None:
    """The Event of a changed headline; None if it did not change."""
    before, after = headline(old), headline(new)
    if after is None or (
        before and (before.type, before.status, before.reason) == (after.type, after.status, after.reason)
    ):
        return None
    # Named by what it says: written twice, by a retry or a second operator, it is one Event.
    seed = "/".join((meta.uid, after.type, after.status, after.reason, after.last_transition_time, str(new.attempts)))
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
        "type": "Warning" if after.type == "Failed" or after.reason in _PROBLEMS else "Normal",
        "reason": after.reason,
        "message": after.message[:_MESSAGE_MAX_LENGTH],
        "source": {"component": _COMPONENT},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
