"""Readers of Events."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.api.objects import Body
from finetune_operator.observed.objects import ReasonMessage

VOLUME_ERROR_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "ProvisioningFailed"})
"""Reasons of Events about a volume that cannot be provisioned, attached or mounted."""


def get_event_time(event: Body) -> str:
    """Return when the Event last occurred, or an empty string if that is unknown."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def find_newest_warning(events: Iterable[Body]) -> ReasonMessage | None:
    """Return the reason and the message of the newest warning."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    newest = max(warnings, key=get_event_time, default=None)
    return ReasonMessage(newest.get("reason", ""), newest.get("message", "")) if newest else None
