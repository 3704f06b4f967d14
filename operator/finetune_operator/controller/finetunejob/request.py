"""The input of one reconcile: a stored FineTuneJob, parsed, and the current time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_operator.api import ConditionType, FineTuneJob, FineTuneJobStatus, ObjectMeta
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.api.run_policy import RunPolicy, read_run_policy
from finetune_operator.observed.objects import is_finished

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_UNKNOWN_NAME_ERRORS = frozenset({"extra_forbidden", "enum", "literal_error", "union_tag_invalid"})
"""Errors of pydantic for fields and values that a newer version may have added."""


class UnreadableObjectError(ValueError):
    """Raised for a FineTuneJob that a newer version of the operator or of the CRD has written."""


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

    Raises `UnreadableObjectError` if the status has values, or the spec has fields or values, that this version does
    not know. What they mean is unknown, and the run may have ended, so the FineTuneJob must be left alone.
    """
    _check_spec_is_known(body)
    return ReconcileRequest(
        key=key,
        body=body,
        meta=ObjectMeta.model_validate(body["metadata"]),
        run_policy=read_run_policy(body),
        previous_status=_read_stored_status(body),
        now=now.astimezone(UTC).strftime(TIME_FORMAT),
    )


def _check_spec_is_known(body: Body) -> None:
    """Raise if the spec has unknown fields or values. Other errors are reported to the user as `InvalidSpec`."""
    if is_finished(body):  # its spec is not needed any more
        return
    try:
        FineTuneJob.model_validate({**body, "status": None})
    except ValidationError as error:
        unknown = [detail for detail in error.errors() if detail["type"] in _UNKNOWN_NAME_ERRORS]
        if unknown:
            raise UnreadableObjectError(_describe_error(unknown[0])) from error


def _read_stored_status(body: Body) -> FineTuneJobStatus:
    try:
        status = _parse_stored_status(body)
    except ValidationError as error:
        raise UnreadableObjectError(f"status.{_describe_error(error.errors()[0])}") from error
    known_types = {*ConditionType}
    for condition in status.conditions:
        if condition.type not in known_types:
            raise UnreadableObjectError(f"status.conditions: unknown type {condition.type}")
    return status


def _describe_error(detail: ErrorDetails) -> str:
    """Name the field, without its value."""
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"


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
