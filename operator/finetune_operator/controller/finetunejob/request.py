"""The input of one reconcile: a stored FineTuneJob, parsed, and the current time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.api.run_policy import RunPolicy, read_run_policy

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class ReconcileRequest(NamedTuple):
    """One FineTuneJob as it is stored, and the time of the reconcile."""

    key: ObjectKey
    body: Body
    meta: ObjectMeta
    run_policy: RunPolicy
    previous_status: FineTuneJobStatus
    now: str
    """The current time. All steps of a reconcile use the same one."""


def build_request(key: ObjectKey, body: Body, now: datetime) -> ReconcileRequest:
    """Parse what a reconcile needs from a stored FineTuneJob.

    Raises pydantic's `ValidationError` if the status cannot be read. The run may have ended, so nothing is done then.
    """
    return ReconcileRequest(
        key=key,
        body=body,
        meta=ObjectMeta.model_validate(body["metadata"]),
        run_policy=read_run_policy(body),
        previous_status=_parse_stored_status(body),
        now=now.astimezone(UTC).strftime(TIME_FORMAT),
    )


def _parse_stored_status(body: Body) -> FineTuneJobStatus:
    """Return the stored status without fields that this version does not know.

    An unreadable progress is dropped: it is only displayed, and a newer trainer may report a stage that this version
    does not know.
    """
    stored = body.get("status") or {}
    try:
        return FineTuneJobStatus.model_validate(stored, extra="ignore")
    except ValidationError:
        without_progress = {key: value for key, value in stored.items() if key != "progress"}
        return FineTuneJobStatus.model_validate(without_progress, extra="ignore")
