"""Readers of the fields that Kubernetes objects of several kinds share: owner, deletion, conditions and times."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from finetune_operator.api import GROUP, KIND
from finetune_operator.api.labels import CONTROLLER_NAME
from finetune_operator.api.objects import Body

TERMINAL_CONDITIONS = ("Complete", "Failed", "Cancelled")
"""Conditions of a Job or a FineTuneJob that has ended. Jobs have the first two."""


class ReasonMessage(NamedTuple):
    """A reason and a message that a component of Kubernetes reported."""

    reason: str
    message: str


def get_name(body: Body) -> str:
    """Return the object's name."""
    return str(body["metadata"]["name"])


def get_creation_time(body: Body) -> str:
    """Return when the object was created, or an empty string if that is unknown."""
    return str(body["metadata"].get("creationTimestamp", ""))


def is_being_deleted(body: Body) -> bool:
    """Return whether the object was deleted and still exists."""
    return "deletionTimestamp" in body["metadata"]


def get_controller_ref(body: Body) -> Body:
    """Return the owner reference to the object's controller, or an empty dictionary if it has none."""
    references = body["metadata"].get("ownerReferences", [])
    return next((reference for reference in references if reference.get("controller")), {})


def is_controlled_by(body: Body, uid: str) -> bool:
    """Return whether the object with this uid is the controller of `body`."""
    return bool(get_controller_ref(body).get("uid") == uid)


def is_controlled_by_finetunejob(body: Body, name: str) -> bool:
    """Return whether the controller is a FineTuneJob with this name, which may have been deleted.

    Another version of the operator may have written the reference with another version of the API.
    """
    owner = get_controller_ref(body)
    group = str(owner.get("apiVersion", "")).partition("/")[0]
    return (group, owner.get("kind"), owner.get("name")) == (GROUP, KIND, name)


def is_managed_elsewhere(body: Body) -> bool:
    """Return whether `spec.managedBy` of a FineTuneJob names another controller."""
    spec = body.get("spec")
    return isinstance(spec, dict) and spec.get("managedBy", CONTROLLER_NAME) not in (CONTROLLER_NAME, None)


def find_true_condition(body: Body, condition_type: str) -> Body | None:
    """Return the condition of this type if its status is True."""
    conditions = body.get("status", {}).get("conditions") or []
    matching = (condition for condition in conditions if condition["type"] == condition_type)
    return next((condition for condition in matching if condition["status"] == "True"), None)


def is_finished(body: Body) -> bool:
    """Return whether a Job or a FineTuneJob is complete, failed or cancelled. A finished Job starts no more pods."""
    return any(find_true_condition(body, condition_type) for condition_type in TERMINAL_CONDITIONS)


def parse_timestamp(text: str | None) -> float | None:
    """Return the seconds since 1970 of a timestamp in RFC 3339.

    Return None if it is missing or malformed: some timestamps are reported by the trainer, which is not trusted.
    """
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except (ValueError, OverflowError, TypeError):
        return None
