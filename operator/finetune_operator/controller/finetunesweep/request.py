"""The input of one reconcile: a stored FineTuneSweep, parsed, and the current time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api import ObjectMeta
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.api.sweep import FineTuneSweep, FineTuneSweepStatus, SweepReason
from finetune_operator.controller.finetunejob.request import TIME_FORMAT, UnreadableObjectError
from finetune_operator.status.sweeps.sweep_state import SweepProblem
from finetune_operator.status.sweeps.trials import list_sweep_trials
from finetune_trainer.contract import Trial

_UNKNOWN_NAME_ERRORS = frozenset({"extra_forbidden", "enum", "literal_error", "union_tag_invalid"})
"""Errors of pydantic for fields and values that a newer version may have added."""


class SweepRequest(NamedTuple):
    """One FineTuneSweep as it is stored, and the time of the reconcile."""

    key: ObjectKey
    body: Body
    meta: ObjectMeta
    previous_status: FineTuneSweepStatus
    sweep: FineTuneSweep | SweepProblem
    """The parsed object, or why its spec is not valid for this version."""
    trials: tuple[Trial, ...]
    now: str
    """The current time (RFC 3339). All steps of a reconcile use the same one."""


def build_sweep_request(key: ObjectKey, body: Body, now: datetime) -> SweepRequest:
    """Parse a stored FineTuneSweep.

    Raises `UnreadableObjectError` if it has fields or values that this version does not know. What they mean is
    unknown, so the FineTuneSweep must be left alone.
    """
    try:
        status = FineTuneSweepStatus.model_validate(body.get("status") or {}, extra="ignore")
    except ValidationError as error:
        raise UnreadableObjectError(f"status.{_describe_error(error)}") from error
    sweep, trials = _parse_sweep(body)
    return SweepRequest(
        key=key,
        body=body,
        meta=ObjectMeta.model_validate(body["metadata"]),
        previous_status=status,
        sweep=sweep,
        trials=trials,
        now=now.astimezone(UTC).strftime(TIME_FORMAT),
    )


def _parse_sweep(body: Body) -> tuple[FineTuneSweep | SweepProblem, tuple[Trial, ...]]:
    try:
        sweep = FineTuneSweep.model_validate({**body, "status": None})
        return sweep, tuple(list_sweep_trials(sweep.spec))
    except ValidationError as error:
        if any(detail["type"] in _UNKNOWN_NAME_ERRORS for detail in error.errors()):
            raise UnreadableObjectError(_describe_error(error)) from error
        return SweepProblem(SweepReason.INVALID_SPEC, _describe_error(error), is_permanent=True), ()
    except ValueError as error:
        return SweepProblem(SweepReason.INVALID_SPEC, f"spec.parameters: {error}", is_permanent=True), ()


def _describe_error(error: ValidationError) -> str:
    """Name the first field, without its value."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
